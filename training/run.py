"""`python -m training.run ds=EXAMS num_workers=4`: class folders in, a model folder out.

The table of contents of training: each step of `_train` is one of the other files. Imports stand where they are needed,
so that the first line is on the terminal at once.
"""

import contextlib
import datetime
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING

from classifier.errors import Interrupted
from cluster.terminal import EXIT_INTERRUPTED, EXIT_OK, Terminal, on_interrupt, run_command

if TYPE_CHECKING:
    import pyarrow as pa

    from classifier.preprocess import PreprocessSpec
    from cluster.session import Session
    from cluster.sizing import Plan
    from training.catalog import Catalog
    from training.config import TrainConfig
    from training.experiment import Experiment
    from training.loop import Job
    from training.root import Root
    from training.run_folder import RunFolder

# After Ctrl-C: the steps under way end, nothing else. Longer than that and something hangs.
_STOP_TIMEOUT_S = 180.0
_ANSWER_WITHIN_S = 60.0
_END_WITHIN_S = 10.0

_ABOUT = """
python -m training.run ds=DATASET [key=value ...]

  python -m training.run ds=EXAMS                            data/raw_data/EXAMS/<class>/** -> models/EXAMS/default/DATE/TIME
  python -m training.run ds=EXAMS num_workers=4 model.lr=5e-5 trainer.max_epochs=20 category=slow
  python -m training.run ds=DIGITS model=tiny augment=none   settings by the file: configs/model/tiny.yaml, ...
  python -m training.run ds=EXAMS paths.raw_data=s3://bucket/raw
  python -m training.run resume=models/EXAMS/default/DATE/TIME

Settings by the file: trainer=auto|cpu|gpu, model=default|tiny, augment=default|none|strong, logger=tensorboard|none.
RAY_ADDRESS=host:port in the environment joins a Ray cluster; without it Ray is started on this machine.
Exit code: 0 the model is saved, 2 a setting or the dataset is wrong, 130 interrupted, 1 a failure (the log is named).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a classifier; returns the exit code."""
    return run_command(_command, list(sys.argv[1:] if arguments is None else arguments))


def _command(arguments: list[str], terminal: Terminal) -> int:
    if any(argument in ("-h", "--help") for argument in arguments):
        return _show_help(terminal)
    terminal.say("Reading the settings ...")
    from cluster.session import address_from_environment, started_ahead, use_one_arena

    use_one_arena()
    with started_ahead(["training.ahead"], address=address_from_environment()):
        from training.settings import read_settings

        return _train(read_settings(arguments), terminal)


def _have_arrow_give_back() -> None:
    """Let the system have what Arrow frees in this process: its own allocator keeps 60 MB of it for 100,000 pictures.

    Not in the workers, which decode into Arrow's memory and use it again.
    """
    kind = "ARROW_DEFAULT_MEMORY_POOL"
    if kind in os.environ:
        return
    os.environ[kind] = "system"
    try:
        import pyarrow as pa

        pa.default_memory_pool()  # the variable is read once
    finally:
        del os.environ[kind]


def _train(config: "TrainConfig", terminal: Terminal) -> int:
    _have_arrow_give_back()
    from classifier.processor import load_preprocess
    from cluster.session import address_from_environment, dashboard_line, ray_session
    from cluster.sizing import admission_cpus, physical_cores, plan_training
    from training.listing import check_candidates, find_dataset, list_dataset, tabulate
    from training.progress import show_dataset
    from training.run_folder import check_writable

    terminal.say(f"Dataset {config.ds}, model {config.model.model_name}.")
    # what can fail fails before Ray is started
    root = find_dataset(config.ds, raw_data=config.paths.raw_data)
    entries = list_dataset(root)
    check_candidates(config.ds, root, entries)
    listing = tabulate(entries)
    del entries  # a quarter of a kilobyte for each file
    check_writable(config.paths.models, key="paths.models")
    check_writable(config.paths.metadata, key="paths.metadata")
    spec = load_preprocess(
        config.model.model_name,
        size_px=config.model.size_px,
        max_pixels=config.data.max_pixels,
        config=config.model.config,
        remember_in=config.paths.cache,
    )
    address = address_from_environment()
    terminal.say(f"Joining the Ray cluster at {address} ..." if address else "Starting Ray on this machine ...")
    tokens = admission_cpus(physical_cores(), config.workers)
    with _resumed(config), ray_session(address=address, admission_cpus=tokens) as session:
        if not session.started_here:
            session.show_dashboard(lambda url: terminal.say(dashboard_line(url)))
        plan = plan_training(session.capacity, num_workers=config.workers, device=config.trainer.device)
        catalog = _prepare(config, root, listing, plan, terminal)
        show_dataset(terminal, catalog)
        _show_plan(plan, spec, terminal)
        from training.cache import pixel_cache

        # before there is a model folder: what cannot be kept leaves none
        store_bytes = session.capacity.smallest_store_bytes(use_gpu=plan.use_gpu)
        with pixel_cache(config, catalog, spec, object_store_bytes=store_bytes) as shards:
            return _run(config, catalog, spec, plan, shards, session, terminal)


@contextlib.contextmanager
def _resumed(config: "TrainConfig") -> "Iterator[None]":
    """With `resume=`: nothing keeps the run from going on, and nobody else goes on with it meanwhile."""
    from training.resume import check_resumable
    from training.run_folder import RunFolder, held

    if config.resume is None:
        yield
        return
    folder = RunFolder(config.resume.absolute())
    with held(folder):
        check_resumable(config, folder)
        yield


def _prepare(config: "TrainConfig", root: "Root", listing: "pa.Table", plan: "Plan", terminal: Terminal) -> "Catalog":
    from training.catalog import prepare_catalog
    from training.inspection import inspect
    from training.progress import counting

    with counting(terminal, "Reading pictures") as on_progress:
        return prepare_catalog(
            config.ds,
            root=root,
            listing=listing,
            metadata=config.paths.metadata,
            config=config.data,
            seed=config.seed,
            inspect=functools.partial(
                inspect,
                max_pixels=config.data.max_pixels,
                task_cpus=plan.decode_cpus,
                tasks=plan.decode_tasks,
                on_progress=on_progress,
            ),
        )


def _run(
    config: "TrainConfig",
    catalog: "Catalog",
    spec: "PreprocessSpec",
    plan: "Plan",
    shards: dict[str, Path] | None,
    session: "Session",
    terminal: Terminal,
) -> int:
    from cluster.session import DASHBOARD_AFTER_S, dashboard_line
    from training.checkpoint import keep_checkpoints
    from training.experiment import plan_experiment
    from training.job import plan_job
    from training.progress import EpochProgress

    def show_dashboard() -> None:
        if session.started_here:
            session.show_dashboard(tell_url, after_s=DASHBOARD_AFTER_S)

    def tell_url(url: str) -> None:
        job.feed.be_seen.remote()
        terminal.say(dashboard_line(url))

    rule = config.callbacks.model_checkpoint
    with (
        _open_folder(config, catalog, terminal) as folder,
        plan_job(config, catalog, spec, plan, folder, shards) as job,
    ):
        if not session.started_here:
            job.feed.be_seen.remote()
        progress = EpochProgress(
            terminal,
            job.feed,
            workers=plan.num_workers,
            pictures=len(job.codes["train"]),
            max_epochs=config.trainer.max_epochs,
            monitor=rule.monitor,
            max_failures=config.trainer.max_failures,
            slow_after_s=config.trainer.slow_after_s,
            on_start=show_dashboard,
        )
        try:
            with progress:
                stopped = _run_until_stopped(plan_experiment(job, plan, config), folder, terminal)
        except BaseException:
            keep_checkpoints(folder, monitor=rule.monitor, mode=rule.mode, save_top_k=rule.save_top_k)
            _say_how_to_go_on(folder, terminal)
            raise
        keep_checkpoints(folder, monitor=rule.monitor, mode=rule.mode, save_top_k=rule.save_top_k)
        _say_unreadable(job, folder, terminal)
        if stopped:
            return _close_interrupted(config, job, spec, folder, terminal)
    return _close(folder, terminal)


@contextlib.contextmanager
def _open_folder(config: "TrainConfig", catalog: "Catalog", terminal: Terminal) -> "Iterator[RunFolder]":
    """The run's folder, with what is known before the first step."""
    from training.catalog import write_summaries
    from training.resume import check_dataset
    from training.run_folder import RunFolder, held, make_run_folder
    from training.settings import write_settings

    with contextlib.ExitStack() as stack:
        if config.resume is not None:  # and held, since before Ray was started
            folder = RunFolder(config.resume.absolute())
            check_dataset(config, folder, catalog)
        else:
            now = datetime.datetime.now()
            folder = make_run_folder(config.paths.models, dataset=config.ds, category=config.category, now=now)
            stack.enter_context(held(folder))
        write_settings(folder, config)
        write_summaries(folder.train_info, catalog)
        terminal.keep_log_in(folder.log)
        yield folder


def _run_until_stopped(experiment: "Experiment", folder: "RunFolder", terminal: Terminal) -> bool:
    """Run the experiment beside the main thread, which waits for Ctrl-C; returns whether the user stopped it.

    Raises:
        KeyboardInterrupt, Interrupted: it was ended, because the user or `_STOP_TIMEOUT_S` asked for that.
    """
    from training.experiment import end_experiment, run_experiment, was_stopped

    stopped_at: list[float] = []
    running: Future[None] = Future()

    def stop() -> None:
        stopped_at.append(time.monotonic())
        terminal.say("Stopping after the steps under way; press Ctrl-C again to stop at once.")
        experiment.job.feed.stop.remote()

    def run() -> None:
        try:
            run_experiment(experiment, folder)
            running.set_result(None)
        except BaseException as error:
            running.set_exception(error)

    # a daemon, and not a pool's thread: neither an exception below nor the end of the process waits for it
    threading.Thread(target=run, name="experiment", daemon=True).start()
    try:
        with on_interrupt(stop):
            while not running.done():
                wait([running], timeout=0.2)
                if stopped_at and time.monotonic() - stopped_at[0] > _STOP_TIMEOUT_S:
                    raise Interrupted(f"Training did not stop within {_STOP_TIMEOUT_S:.0f} s; it is ended now.")
    except (KeyboardInterrupt, Interrupted):
        end_experiment(experiment)
        wait([running], timeout=_END_WITHIN_S)
        raise
    running.result()
    return was_stopped(experiment)


def _say_unreadable(job: "Job", folder: "RunFolder", terminal: Terminal) -> None:
    """Name the pictures that went missing while the run lasted."""
    import ray

    from training.unreadable import UNREADABLE, last_note, write_unreadable

    rows = ray.get(job.feed.unreadable.remote(), timeout=_ANSWER_WITHIN_S)
    write_unreadable(folder.train_info / UNREADABLE, rows)
    if rows:
        terminal.say(last_note(rows, Path(_shown(folder)) / folder.train_info.name / UNREADABLE))


def _close(folder: "RunFolder", terminal: Terminal) -> int:
    from training.progress import show_results

    show_results(terminal, json.loads((folder.train_info / "metrics.json").read_text()))
    terminal.say(f"Your model has been saved in the {_shown(folder)} directory")
    return EXIT_OK


def _close_interrupted(
    config: "TrainConfig", job: "Job", spec: "PreprocessSpec", folder: "RunFolder", terminal: Terminal
) -> int:
    """Make what the best epoch so far gave usable, and say how to go on."""
    from classifier.network import load_network
    from training.checkpoint import best_candidate, find_candidates
    from training.evaluation import remove_report
    from training.finish import best_epoch_of_model, export, load_weights
    from training.run_folder import remove_run_folder

    candidates = find_candidates(folder)
    if not candidates:
        kept = ""
        if config.resume is None:  # else it is not this command's
            remove_run_folder(folder, models=config.paths.models)
            kept = "; nothing is kept"
        terminal.say(f"Stopped before the first epoch was over{kept}.")
        return EXIT_INTERRUPTED
    rule = config.callbacks.model_checkpoint
    best = best_candidate(candidates, monitor=rule.monitor, mode=rule.mode)
    name = f"{best.metrics['epoch']} (val_acc {best.metrics['val_acc']:.4f})"
    if best_epoch_of_model(folder) == best.metrics["epoch"]:
        terminal.say(f"Stopped. Epoch {name} is still the best; the model in {_shown(folder)} is as it was.")
    else:
        network = load_network(config.model.model_name, labels=job.labels, spec=spec, config=config.model.config)
        load_weights(network, best.file)
        remove_report(folder.train_info)  # an earlier end of this run left it: it is of other weights
        export(job, spec, network, folder, best.metrics | {"best_epoch": best.metrics["epoch"]}, samples=None)
        terminal.say(
            f"Stopped. The best epoch so far, {name}, has been saved in the {_shown(folder)} directory; the test split "
            "was not scored."
        )
    _say_how_to_go_on(folder, terminal)
    return EXIT_INTERRUPTED


def _say_how_to_go_on(folder: "RunFolder", terminal: Terminal) -> None:
    from training.checkpoint import find_candidates

    if find_candidates(folder):
        terminal.say(f"To go on from the last checkpoint: python -m training.run resume={_shown(folder)}")


def _show_plan(plan: "Plan", spec: "PreprocessSpec", terminal: Terminal) -> None:
    device = "a GPU" if plan.use_gpu else "the CPU"
    workers = f"{plan.num_workers} worker{'s' if plan.num_workers > 1 else ''}"
    if plan.elastic is not None:
        workers += f" (from {plan.elastic[0]} to {plan.elastic[1]}, as the cluster has room)"
    threads = f"{plan.threads_per_worker} thread{'s' if plan.threads_per_worker > 1 else ''}"
    size = f"{spec.width_px} x {spec.height_px}"
    terminal.say(f"{workers}, each on {device} with {threads}; pictures of {size} pixels. Starting ...")


def _shown(folder: "RunFolder") -> str:
    """The folder as a person would type it."""
    here = Path.cwd()
    return str(folder.path.relative_to(here)) if folder.path.is_relative_to(here) else str(folder.path)


def _show_help(terminal: Terminal) -> int:
    from cluster.configuration import help_text
    from training.config import TrainConfig

    terminal.say(help_text(TrainConfig, name="train", about=_ABOUT))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
