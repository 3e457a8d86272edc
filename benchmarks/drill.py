"""What a run survives: `python -m benchmarks.drill faults=worker:10,node:3,drain:1,stopped:1,driver:3,controller:3,grow:1`.

Small runs on the handwritten digits, two workers each; to them faults happen at random moments, up to five to one run:

    worker       SIGKILL to one of the two training workers
    stopped      SIGSTOP to one of them: alive, and silent
    controller   SIGKILL to the Tune trial, which has Ray Train's controller in it
    driver       SIGKILL to the command itself; its Ray, started by it, is left to itself; then `resume=`
    node         one machine of a cluster with three, every process of it (`ray.cluster_utils.Cluster`); then another joins
    drain        the same after a notice of 3 s, as a spot market gives it (`ray drain-node`)
    grow         `num_workers=1..2` on one machine; a second one joins and, once it trains too, is lost

The network has no BatchNorm, so a run that went on must end with the undisturbed run's metrics, but for rounding. A row
is bad when its run hung, failed, lost more than the epoch under way, ended with other metrics, or left something.
`seed=3` draws other moments; `add=yes` keeps the rows of earlier drills of the same kinds and their undisturbed run, for a
drill in parts. Exit code 1 when a row is bad.
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.cluster.two_nodes import processes_of
from tests.training.faults import Run, find, of_ours, scratch_files, training
from training.digits import write_digits

FILE = Path(__file__).resolve().parent / "results/drill.json"
ORDER = "worker:10,node:3,drain:1,stopped:1,driver:3,controller:3,grow:1"
EPOCHS = 6
IN_ONE_RUN = 5
_VIT = (
    "{{model_type: vit, hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 96, "
    "image_size: 32, patch_size: {}}}"
)
SETTINGS = (
    "ds=DIGITS",
    "category=drill",
    "augment=none",
    "trainer=cpu",
    "trainer.precision=32",
    "num_workers=2",
    "data.batch_size=64",
    "model.lr=3e-3",
    f"trainer.max_epochs={EPOCHS}",
    f"trainer.max_failures={2 * IN_ONE_RUN}",
    "callbacks.early_stopping=null",
    f"model.config={_VIT.format(4)}",
)
# Enough to do that a machine can join meanwhile: Ray hands out room every 20 s.
SLOW = (f"model.config={_VIT.format(2)}", "trainer.max_epochs=12", "model.lr=1e-3")
# Sums over another number of workers are rounded otherwise, and training makes much of it: undisturbed, one worker and two
# are 0.02 apart in train_loss after five epochs of the settings above.
GROWN_TOLERANCE = 5.0  # times
LOSS_TOLERANCE = 0.01  # test loss; one more or one less of 269 pictures right is 0.004 of accuracy
ACCURACY_TOLERANCE = 0.012
NOTICE_S = 3
HANG_AFTER_S = 20
END_WITHIN_S = 240.0
# Ray counts its machines every 20 s; one that is lost between two counts must not be waited for much longer.
FORGOTTEN_WITHIN_S = 90.0
# Ray's two agents report to a dead head for about a minute before they end (tests/cluster/test_session.py).
GONE_WITHIN_S = 90.0
# A machine that is gone is missed within 3 s instead of 15: the drill is about what follows.
_MISSED_SOON = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
_STARTED = re.compile(r"Training (?:on|goes on with epoch (\d+) on) (\d+) worker")
_EPOCH = re.compile(r"Epoch +(\d+) ")


@dataclass
class Row:
    """What came of one fault."""

    fault: str
    moment: str
    epochs_lost: int = 0  # whole epochs that were trained again
    seconds: float | None = None  # until training went on
    epochs: int | None = None
    accuracy: float | None = None
    loss: float | None = None
    leftovers: int | None = None
    wrong: str = ""  # empty: all is well


@dataclass
class Drill:
    """What all faults of a drill share."""

    folder: Path  # where the commands are typed
    whole: dict[str, Any]  # the undisturbed run: epochs, accuracy, loss, training_s
    random: random.Random

    def wait(self, run: Run, *, epochs: int) -> None:
        """Until the next fault: up to so many epochs after training has begun or gone on, and a part of one."""
        told = _epochs(run) + self.random.randint(0, epochs)
        while _epochs(run) < told and not _is_over(run) and run.process.poll() is None:
            time.sleep(0.05)
        time.sleep(self.random.uniform(0.02, 1.0) * float(self.whole["training_s"]) / EPOCHS)


def main() -> int:
    options = {"faults": ORDER, "seed": "0", "add": "no"} | dict(argument.split("=", 1) for argument in sys.argv[1:])
    wanted = [(kind, int(count)) for kind, _, count in (each.partition(":") for each in options["faults"].split(","))]
    unknown = (options.keys() - {"faults", "seed", "add"}) | (dict(wanted).keys() - FAULTS.keys())
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}\n{__doc__}")
        return 2
    before = _before(dict(wanted), add=options["add"] == "yes")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="drill-") as name:
        folder = Path(name)
        write_digits(folder / "data/raw_data/DIGITS")
        whole = before["undisturbed"] or _undisturbed(folder)
        print(f"undisturbed: {whole}", flush=True)
        drill = Drill(folder, whole, random.Random(int(options["seed"])))
        for kind, count in wanted:
            left, tries = count, 0
            while left > 0 and tries < 2 * count:
                tries += 1
                made: list[Row] = []
                try:
                    FAULTS[kind](drill, kind, min(left, IN_ONE_RUN), made)
                except AssertionError as error:
                    print(error, flush=True)
                    made = made or [Row(kind, "before the fault")]
                    for row in made:
                        row.wrong = row.wrong or str(error).partition("\n")[0]
                left -= len(made)
                rows += made
                for row in made:
                    print(_line(row), flush=True)
                _write(before["rows"] + [asdict(row) for row in rows], whole)
    return 1 if any(row.wrong for row in rows) else 0


def _undisturbed(folder: Path, *settings: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ray-") as ray, _training(folder, ray, *settings) as run:
        run.wait_for(r"^Training on")
        first = time.monotonic()
        run.wait_for(r"^Scoring")
        training_s = time.monotonic() - first
        assert run.end(within_s=END_WITHIN_S) == 0, run.output
        return {key: _metrics(run)[key] for key in ("epochs", "accuracy", "loss")} | {"training_s": training_s}


def _processes(title: str, signal_number: int, *settings: str) -> Callable[[Drill, str, int, list[Row]], None]:
    """Faults of single processes, in runs that start a Ray of their own."""

    def happen(drill: Drill, kind: str, count: int, rows: list[Row]) -> None:
        def strike(run: Run) -> bool:
            found = find(title, below=run.process.pid)
            if found:
                drill.random.choice(found).send_signal(signal_number)
            return bool(found)

        with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray:
            with _training(drill.folder, ray, *settings) as run:
                _disturb(drill, run, kind, count, rows, strike)
            _close(run, rows, drill.whole, lambda: [*processes_of(Path(ray)), *scratch_files(_scratch(ray))])

    return happen


def _driver(drill: Drill, kind: str, count: int, rows: list[Row]) -> None:
    """Each command but the last is killed; the next one goes on."""
    with contextlib.ExitStack() as stack:
        settings: tuple[str, ...] = ()
        rays, lines = [], []
        for number in range(count + 1):
            ray = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
            rays.append(ray)
            with _training(drill.folder, ray, *settings, resumes=number > 0) as run:
                typed = time.monotonic()
                run.wait_for(r"^(Training|Scoring)")
                began = time.monotonic()
                if rows:
                    rows[-1].seconds = round(began - typed, 1)
                if number < count:
                    drill.wait(run, epochs=1 if rows else EPOCHS - 2)
                if number == count or _is_over(run):
                    assert run.end(within_s=END_WITHIN_S) == 0, run.output
                else:
                    kill_moment = _moment(run, began)
                    run.process.kill()
                    run.process.wait()
            lines += run.lines
            if rows:
                rows[-1].epochs_lost = _lost(lines, len(lines) - len(run.lines))
            if run.process.returncode == 0:
                break
            rows.append(Row(kind, kill_moment))
            killed = time.monotonic()
            model = max((drill.folder / "models/DIGITS/drill").glob("*/*"), key=lambda path: path.name)
            settings = (f"resume={model.relative_to(drill.folder)}",)
        while any(processes_of(Path(ray)) for ray in rays) and time.monotonic() - killed < GONE_WITHIN_S:
            time.sleep(1)
        _close(run, rows, drill.whole, lambda: [*(each for ray in rays for each in processes_of(Path(ray)))])


def _machines(notice_s: int) -> Callable[[Drill, str, int, list[Row]], None]:
    """Machines that are taken from a cluster, each replaced before the next one goes."""

    def happen(drill: Drill, kind: str, count: int, rows: list[Row]) -> None:
        with _cluster(machines=2) as (cluster, ray), _training(drill.folder, ray, address=cluster.address) as run:

            def strike(run: Run) -> bool:
                if len(cluster.worker_nodes) < 2:
                    cluster.add_node(num_cpus=1, object_store_memory=2 * 10**8)
                lost = next((node for node in sorted(cluster.worker_nodes, key=str) if _has_worker(node)), None)
                if lost is None:
                    return False
                if notice_s:
                    _give_notice(cluster.address, lost.node_id, notice_s)
                    time.sleep(notice_s)
                cluster.remove_node(lost, allow_graceful=False)
                return True

            _disturb(drill, run, kind, count, rows, strike)
            _close(run, rows, drill.whole, lambda: _left_on(cluster, ray))

    return happen


def _grow(drill: Drill, kind: str, count: int, rows: list[Row]) -> None:
    """A machine joins, and is lost: a row for each."""
    whole = _undisturbed(drill.folder, *SLOW)
    settings = (*SLOW, "num_workers=1..2", "trainer.resize_every_s=5")
    with (
        _cluster(machines=0) as (cluster, ray),
        _training(drill.folder, ray, *settings, address=cluster.address) as run,
    ):

        def strike(run: Run) -> bool:
            if cluster.worker_nodes:
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            else:
                cluster.add_node(num_cpus=1, object_store_memory=2 * 10**8)
            return True

        _disturb(drill, run, kind, 2, rows, strike, first=1)
        numbers = [int(found[2]) for found in map(_STARTED.match, run.lines) if found]
        assert numbers == [1, 2, 1], f"the numbers of workers were {numbers}:\n{run.output}"
        assert (rows[-1].seconds or 0) < FORGOTTEN_WITHIN_S, f"a lost machine was waited for:\n{run.output}"
        _close(run, rows, whole, lambda: _left_on(cluster, ray), tolerance=GROWN_TOLERANCE)


def _disturb(
    drill: Drill,
    run: Run,
    kind: str,
    count: int,
    rows: list[Row],
    strike: Callable[[Run], bool],
    *,
    first: int = EPOCHS - 2,
) -> None:
    """Let faults happen to a run, each once it trains again after the last, and wait for its end.

    Args:
        drill: what all faults share.
        run: has just been started.
        kind: of fault.
        count: how many, at most.
        rows: gets one for each that happened.
        strike: makes it happen; returns whether there was something to strike.
        first: the first one comes in one of the epochs up to this one.
    """
    run.wait_for(r"^Training on")
    began = time.monotonic()
    while len(rows) < count:
        drill.wait(run, epochs=1 if rows else first)
        moment, seen, struck = _moment(run, began), len(run.lines), time.monotonic()
        if _is_over(run) or not strike(run):
            break
        rows.append(Row(kind, moment))
        while run.process.poll() is None and not any(map(_STARTED.match, run.lines[seen:])):
            assert time.monotonic() - struck < END_WITHIN_S, f"hung: training did not go on:\n{run.output}"
            time.sleep(0.1)
        began = time.monotonic()
        rows[-1].seconds, rows[-1].epochs_lost = round(began - struck, 1), _lost(run.lines, seen)
    assert run.end(within_s=END_WITHIN_S) == 0, run.output


def _lost(lines: list[str], since: int) -> int:
    """How many of the epochs that were told of are trained again after line `since`."""
    for number, line in enumerate(lines[since:], since):
        found = _STARTED.match(line)
        if found:
            told = [int(epoch[1]) for epoch in map(_EPOCH.match, lines[:number]) if epoch]
            return max(0, max(told, default=-1) + 1 - int(found[1] or 0))
    return 0


def _epochs(run: Run) -> int:
    return sum(line.startswith("Epoch ") for line in run.lines)


def _is_over(run: Run) -> bool:
    return any(line.startswith("Scoring") for line in run.lines)


def _moment(run: Run, began: float) -> str:
    told = [int(epoch[1]) for epoch in map(_EPOCH.match, run.lines) if epoch]
    return f"in epoch {max(told, default=-1) + 1}, {time.monotonic() - began:.1f} s after the start"


@contextlib.contextmanager
def _cluster(*, machines: int) -> Iterator[tuple[Any, str]]:
    """A head, which is where the command is typed, and other machines, of one CPU each; and its folder."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray:
        own = _environment(ray)
        os.environ |= own
        node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 2 * 10**8}
        head = node | {"dashboard_port": _free_port(), "_system_config": _MISSED_SOON}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(machines):
                cluster.add_node(**node)
            cluster.wait_for_nodes(timeout=60)
            yield cluster, ray
        finally:
            cluster.shutdown()
            for key in own:
                del os.environ[key]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _give_notice(address: str, node: str, notice_s: int) -> None:
    told = [
        f"--address={address}",
        f"--node-id={node}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=drill",
    ]
    ray = str(Path(sys.executable).with_name("ray"))
    subprocess.run(
        [ray, "drain-node", *told, f"--deadline-remaining-seconds={notice_s}"],
        check=True,
        capture_output=True,
        timeout=60,
    )


def _has_worker(node: Any) -> bool:
    """Whether one of a node's processes trains."""
    raylet = node.all_processes["raylet"][0].process.pid
    return bool(find("ray::RayTrainWorker", below=raylet))


def _training(
    folder: Path, ray: str, *settings: str, resumes: bool = False, address: str | None = None
) -> contextlib.AbstractContextManager[Run]:
    whole = settings if resumes else (*SETTINGS, *settings)
    return training(folder, *whole, address=address, environment=_environment(ray))


def _environment(ray: str) -> dict[str, str]:
    return {"RAY_TMPDIR": ray, "TMPDIR": str(_scratch(ray)), "RAY_AUTH_MODE": "disabled"}


def _scratch(ray: str) -> Path:
    scratch = Path(ray) / "scratch"
    scratch.mkdir(exist_ok=True)
    return scratch


def _left_on(cluster: Any, ray: str) -> list[str]:
    return [*of_ours(cluster.address, _environment(ray)), *scratch_files(_scratch(ray))]


def _close(
    run: Run, rows: list[Row], whole: dict[str, Any], find_left: Callable[[], list[str]], *, tolerance: float = 1.0
) -> None:
    """How the run ended, and what it left: processes, temporary files, what is hidden in the model folder."""
    deadline = time.monotonic() + 15
    while (left := find_left()) and time.monotonic() < deadline:
        time.sleep(0.5)
    left += [str(file) for file in run.model.rglob(".*")]
    if left:
        print("\n".join(left), flush=True)
    metrics = _metrics(run)
    for row in rows:
        row.epochs, row.accuracy, row.loss = metrics["epochs"], round(metrics["accuracy"], 4), round(metrics["loss"], 4)
        row.leftovers = len(left)
        _judge(row, whole, tolerance)


def _metrics(run: Run) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run.model / "train_info/metrics.json").read_text())
    return metrics


def _judge(row: Row, whole: dict[str, Any], tolerance: float) -> None:
    assert row.accuracy is not None and row.loss is not None
    if row.epochs != whole["epochs"]:
        row.wrong = f"{row.epochs} epochs instead of {whole['epochs']}"
    elif (
        abs(row.loss - whole["loss"]) > tolerance * LOSS_TOLERANCE
        or abs(row.accuracy - whole["accuracy"]) > tolerance * ACCURACY_TOLERANCE
    ):
        row.wrong = (
            f"other metrics than the undisturbed run (accuracy {whole['accuracy']:.4f}, loss {whole['loss']:.4f})"
        )
    elif row.epochs_lost > 1:
        row.wrong = "more than an epoch was lost"
    elif row.leftovers:
        row.wrong = "something was left behind"


def _line(row: Row) -> str:
    return (
        f"{row.fault:<11} {row.moment:<36} went on after {row.seconds} s, epochs lost {row.epochs_lost}, trained "
        f"{row.epochs}, accuracy {row.accuracy}, loss {row.loss}, leftovers {row.leftovers}  {row.wrong or 'ok'}"
    )


def _before(wanted: dict[str, int], *, add: bool) -> dict[str, Any]:
    """The rows to keep; the undisturbed run too, where it is of the same settings."""
    kept: dict[str, Any] = json.loads(FILE.read_text()) if FILE.is_file() else {"rows": []}
    is_same = kept.get("settings") == list(SETTINGS)
    rows = [row for row in kept["rows"] if is_same and (add or row["fault"] not in wanted)]
    return {"rows": rows, "undisturbed": kept["undisturbed"] if add and is_same else None}


def _write(rows: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    """After each run: a drill that is ended early has its rows."""
    document = {
        "rows": rows,
        "undisturbed": whole,
        "settings": SETTINGS,
        "machine": {"cores": len(os.sched_getaffinity(0)), "gpus": 0},
        "versions": {name: version(name) for name in ("ray", "torch", "lightning")},
        "date": datetime.now(UTC).date().isoformat(),
    }
    FILE.write_text(json.dumps(document, indent=2) + "\n")


FAULTS: dict[str, Callable[[Drill, str, int, list[Row]], None]] = {
    "worker": _processes("ray::RayTrainWorker", signal.SIGKILL),
    "stopped": _processes(
        "ray::RayTrainWorker", signal.SIGSTOP, "trainer.slow_after_s=8", f"trainer.hang_after_s={HANG_AFTER_S}"
    ),
    "controller": _processes("ray::ImplicitFunc", signal.SIGKILL),
    "driver": _driver,
    "node": _machines(0),
    "drain": _machines(NOTICE_S),
    "grow": _grow,
}

if __name__ == "__main__":
    sys.exit(main())
