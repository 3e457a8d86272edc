"""`python -m serving.batch`: a folder of pictures in, one JSON each out, any size, any interruption.

This file is the table of contents: settings, model, ledger, pipeline, files beside the results, summary.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from classifier.errors import ConfigError, Interrupted
from cluster.configuration import Section, compose, help_text
from cluster.terminal import EXIT_OK, EXIT_SOME_UNREADABLE, Terminal, on_interrupt, run_command
from serving.record import Format
from serving.storage import BOOKS, LocalStorage, claimed

if TYPE_CHECKING:
    from classifier.model_folder import Manifest
    from serving.folder import Job
    from serving.report import Report
    from serving.stages import Outcome
    from serving.storage import Storage

_ASK_EVERY_S = 0.5

_ABOUT = """
python -m serving.batch md=MODEL [key=value ...]

  python -m serving.batch md=models/EXAMS/default/2026-11-22/14-03-55     input/** -> out/**.json
  python -m serving.batch md=EXAMS                                        the newest model of EXAMS
  python -m serving.batch md=EXAMS file=photo.jpg                         one picture, answer printed
  python -m serving.batch md=EXAMS predict.input_dir=s3://bucket/photos predict.output_dir=s3://bucket/answers \\
      predict.format=json,parquet

Run it again to go on after an interruption, or when pictures have come or changed: what is done is not done twice.
Exit code: 0 all predicted, 3 some could not be read, 2 a setting is wrong, 130 interrupted.
"""


def _formats(value: str) -> str:
    found = [part.strip() for part in value.strip("[]").replace("|", ",").split(",") if part.strip()]
    unknown = [part for part in found if part not in get_args(Format)]
    if unknown or not found:
        raise ValueError(f"expected one or more of {', '.join(get_args(Format))}, with commas between")
    return ",".join(dict.fromkeys(found))


class FolderSection(Section):
    """`predict`: where pictures come from and results go."""

    input_dir: str = Field(description="folder or URL (s3://, gs://) whose pictures are predicted, at any depth")
    output_dir: str = Field(description="folder or URL for the results, in the same tree")
    format: Annotated[str, AfterValidator(_formats)] = Field(
        description="json (a file a picture), jsonl, csv, parquet (one file); several: json,csv"
    )

    @property
    def formats(self) -> list[Format]:
        """`format`, taken apart."""
        return [part for part in get_args(Format) if part in self.format.split(",")]

    ray_from: int = Field(
        ge=0, description="folders with fewer pictures are done in this process: starting Ray takes longer"
    )


class BatchConfig(Section):
    """All settings of the folder job."""

    md: str | None = Field(description="model folder, or DATASET or DATASET/CATEGORY for its newest model")
    file: str | None = Field(description="predict this one picture instead of a folder, and print the answer")
    num_workers: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        description="processes that hold the model; auto: one for each GPU, else one for each core"
    )
    device: Literal["auto", "cpu", "gpu"] = Field(description="auto takes GPUs when there are any")
    top_k: Annotated[int, Field(ge=1)] = Field(description="labels in an answer")
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        description="pictures that are read, predicted and written together"
    )
    force: bool = Field(description="predict again what is done already")
    predict: FolderSection


def main() -> int:
    """The command."""
    return run_command(run, sys.argv[1:])


def run(arguments: list[str], terminal: Terminal) -> int:
    """Predict a folder, or one picture; returns the exit code."""
    if any(argument in ("--help", "-h", "help") for argument in arguments):
        terminal.say(help_text(BatchConfig, name="predict", about=_ABOUT))
        return EXIT_OK
    began = time.monotonic()
    terminal.say("Reading the settings.")
    config = compose(BatchConfig, name="predict", overrides=arguments)
    if config.md is None:
        raise ConfigError("md: not set; expected a model folder or a dataset's name, for example md=EXAMS")
    if config.file is not None:
        return _predict_file(config, config.md, config.file, terminal)
    return _predict_folder(config, config.md, terminal, began=began)


def _predict_folder(config: BatchConfig, md: str, terminal: Terminal, *, began: float) -> int:
    from serving import ledger, results
    from serving.listing import check_input
    from serving.report import Report
    from serving.storage import open_storage

    source = open_storage(config.predict.input_dir, key="predict.input_dir")
    target = _open_target(config.predict.output_dir)
    check_input(source, key="predict.input_dir")
    model, manifest = _find(md)
    formats = config.predict.formats
    with claimed(target):
        if isinstance(target, LocalStorage):
            terminal.keep_log_in(Path(target.uri(f"{BOOKS}/log.txt")))
        job = _job(config, model, manifest, source, target, writes_json="json" in formats)
        report = Report(began)
        listed, others = _consume(config, job, manifest, report, terminal)
        report.check(listed)
        entries = ledger.merge(target, run=job.writer.run)
        places = [target.uri("")] if "json" in formats else []
        for kind in formats:
            if kind != "json":
                places.append(
                    results.write_table(
                        target, entries, keys=report.keys, manifest=manifest, top_k=config.top_k, kind=kind
                    )
                )
        results.write_errors(target, entries, keys=report.keys)
        seconds = time.monotonic() - began
        summary = report.summary(listed=listed, others=others, manifest=manifest, seconds=seconds)
        results.write_summary(target, summary)
    for line in report.lines(listed=listed, others=others, manifest=manifest, seconds=seconds):
        terminal.say(line)
    terminal.say(f"Results: {', '.join(places)}")
    return EXIT_SOME_UNREADABLE if report.unreadable else EXIT_OK


def _predict_file(config: BatchConfig, md: str, file: str, terminal: Terminal) -> int:
    """One picture, in this process; its JSON is written like that of any other, and printed."""
    import json
    import os

    from serving.folder import outcomes_of
    from serving.listing import Chunk, Found
    from serving.stages import result_name
    from serving.storage import open_storage

    place = file if "://" in file else os.path.abspath(Path(file).expanduser())  # noqa: PTH100 - keeps a symlink's name
    folder, _, name = place.rpartition("/")
    source = open_storage(folder or "/", key="file")
    target = _open_target(config.predict.output_dir)
    if not name or (isinstance(source, LocalStorage) and not os.path.lexists(place)):
        raise ConfigError(f"file={file}: no such file")
    if isinstance(source, LocalStorage) and os.path.isdir(place):  # noqa: PTH112 - a name with a null byte is no folder
        raise ConfigError(f"file={file} is a folder; for a folder: predict.input_dir={file}")
    model, manifest = _find(md)
    with claimed(target):
        job = _job(config, model, manifest, source, target, writes_json=True)
        outcome = next(outcomes_of(job, [Chunk(0, [Found(name)], 0)], cores=1))
        answer = target.read(result_name(name))
    terminal.say(json.dumps(json.loads(answer), indent=2))
    terminal.say(f"Written to {target.uri(result_name(name))}")
    return EXIT_SOME_UNREADABLE if outcome.unreadable else EXIT_OK


def _open_target(place: str) -> "Storage":
    from cluster.session import check_kept
    from serving.storage import open_storage

    target = open_storage(place, key="predict.output_dir")
    if isinstance(target, LocalStorage):
        check_kept(Path(target.root), key="predict.output_dir")
    return target


def _find(md: str) -> "tuple[Path, Manifest]":
    from classifier.model_folder import find_model, read_manifest

    model = find_model(md, models_dir=Path("models"))
    return model, read_manifest(model)


def _job(
    config: BatchConfig, model: Path, manifest: "Manifest", source: "Storage", target: "Storage", *, writes_json: bool
) -> "Job":
    from serving import ledger
    from serving.folder import Job
    from serving.record import ModelMark
    from serving.stages import Decoder, Writer

    settings = ledger.settings_key(model_digest=manifest.digest, top_k=config.top_k)
    done = ledger.Ledger.empty() if config.force else ledger.Ledger.load(target)
    return Job(
        source=source,
        model=model,
        device=config.device,
        top_k=config.top_k,
        batch_size=config.batch_size,
        decoder=Decoder(source, target, manifest.preprocess, done, settings, writes_json),
        writer=Writer(source, target, ModelMark(manifest.name, manifest.digest), ledger.next_run(target), writes_json),
    )


def _consume(
    config: BatchConfig, job: "Job", manifest: "Manifest", report: "Report", terminal: Terminal
) -> tuple[int, int]:
    """Do the job here or on Ray; returns the pictures and the other files that were listed."""
    from cluster.session import address_from_environment
    from serving.folder import Tally, outcomes_here
    from serving.listing import holds_fewer_than

    address = address_from_environment()
    if address is None and holds_fewer_than(job.source, config.predict.ray_from):
        terminal.say(f"Predicting {job.source.uri('')} with {job.writer.model.name}.")
        tally = Tally()
        _watch(outcomes_here(job, tally), tally.total, report, terminal)
        return tally.total()[:2]
    from cluster.session import started_ahead
    from serving.ahead import FOLDER_JOB, backend_modules

    terminal.say("Joining the Ray cluster." if address else "Starting Ray.")
    with started_ahead((*backend_modules(manifest, device=config.device), *FOLDER_JOB), address=address):
        return _consume_on_ray(config, job, report, terminal, address=address)


def _consume_on_ray(
    config: BatchConfig, job: "Job", report: "Report", terminal: Terminal, *, address: str | None
) -> tuple[int, int]:
    from cluster.session import DASHBOARD_AFTER_S, dashboard_line, ray_session
    from cluster.sizing import physical_cores
    from serving.folder import outcomes_on_ray, start_tally, total_of
    from serving.sizing import admission_cpus, plan_folder

    cpus = admission_cpus(physical_cores(), config.num_workers)
    with ray_session(address=address, admission_cpus=cpus) as session:
        plan = plan_folder(session.capacity, num_workers=config.num_workers, device=config.device)
        workers = f"{plan.workers} worker{'s' if plan.workers > 1 else ''} on {'GPUs' if plan.use_gpu else 'CPUs'}"
        terminal.say(f"Predicting {job.source.uri('')} with {job.writer.model.name}, {workers}.")
        tally = start_tally()

        def total() -> tuple[int, int, bool]:
            return total_of(tally)

        session.show_dashboard(lambda url: terminal.say(dashboard_line(url)), after_s=DASHBOARD_AFTER_S)
        _watch(outcomes_on_ray(job, plan, tally), total, report, terminal)
        return total()[:2]


def _watch(
    outcomes: "Iterator[Outcome]", total: Callable[[], tuple[int, int, bool]], report: "Report", terminal: Terminal
) -> None:
    """Count outcomes as they come, and show how far it is. Ctrl-C ends it at once: what is done is in the ledger."""
    from serving.progress import ProgressLine

    def stop() -> None:
        raise KeyboardInterrupt

    asked = float("-inf")
    listed, ended = 0, False
    try:
        with on_interrupt(stop), ProgressLine(terminal) as line:
            for outcome in outcomes:
                report.add(outcome)
                if not ended and time.monotonic() - asked > _ASK_EVERY_S:
                    listed, _, ended = total()
                    asked = time.monotonic()
                line.show(report.done, listed, listing_ended=ended)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"Stopped after {report.done:,} pictures; what is done is kept: the same command goes on from here."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
