"""What a run survives: `python -m benchmarks.drill faults=worker:10,node:3,drain:1,driver:3,controller:3`.

Small runs on the handwritten digits, two workers each; to each one fault happens, SIGKILL at a random moment:

    worker       one of the two training workers
    controller   the Tune trial, which has Ray Train's controller in it
    driver       the command itself; its Ray, started by it, is left to itself; then `resume=`
    node         one machine of a cluster with three, every process of it (`ray.cluster_utils.Cluster`)
    drain        the same after a notice of 3 s, as a spot market gives it (`ray drain-node`)

The network has no BatchNorm, so a run that went on must end with the undisturbed run's metrics, but for rounding. A row
is bad when the run hung, failed, lost more than the epoch under way, ended with other metrics, or left something.
`seed=3` draws other moments; `add=yes` keeps the rows of earlier drills of the same kinds, for a drill in parts. Exit code 1
when a row is bad.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.cluster.two_nodes import processes_of
from tests.training.faults import Run, find, kill, of_ours, scratch_files, training
from training.digits import write_digits

FILE = Path(__file__).resolve().parent / "results/drill.json"
ORDER = "worker:10,node:3,drain:1,driver:3,controller:3"
EPOCHS = 6
SETTINGS = (
    "ds=DIGITS",
    "augment=none",
    "trainer=cpu",
    "trainer.precision=32",
    "num_workers=2",
    "data.batch_size=64",
    "model.lr=3e-3",
    f"trainer.max_epochs={EPOCHS}",
    "callbacks.early_stopping=null",
    "model.config={model_type: vit, hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 2, "
    "intermediate_size: 96, image_size: 32, patch_size: 4}",
)
LOSS_TOLERANCE = 0.01  # test loss; one more or one less of 269 pictures right is 0.004 of accuracy
ACCURACY_TOLERANCE = 0.012
END_WITHIN_S = 240.0
# Ray's two agents report to a dead head for about a minute before they end (tests/cluster/test_session.py).
GONE_WITHIN_S = 90.0


@dataclass
class Row:
    """What came of one fault."""

    fault: str
    moment: str
    epochs_lost: int | None = None  # whole epochs that were trained again
    epochs: int | None = None
    accuracy: float | None = None
    loss: float | None = None
    seconds_more: float | None = None
    leftovers: int | None = None
    wrong: str = ""  # empty: all is well


def main() -> int:
    options = {"faults": ORDER, "seed": "0", "add": "no"} | dict(argument.split("=", 1) for argument in sys.argv[1:])
    unknown = options.keys() - {"faults", "seed", "add"}
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}\n{__doc__}")
        return 2
    wanted = [(kind, int(count)) for kind, _, count in (each.partition(":") for each in options["faults"].split(","))]
    moments = random.Random(int(options["seed"]))
    rows: list[Row] = []
    kept = [row for row in _kept() if options["add"] == "yes" or row["fault"] not in dict(wanted)]
    with tempfile.TemporaryDirectory(prefix="drill-") as name:
        folder = Path(name)
        write_digits(folder / "data/raw_data/DIGITS")
        whole, training_s, run_s = _undisturbed(folder)
        print(f"undisturbed: {_said(whole)}, {run_s:.0f} s, {training_s:.0f} s of it training", flush=True)
        for kind, count in wanted:
            for _ in range(count):
                after_s = moments.uniform(0.02, 0.9) * training_s
                row = Row(kind, f"{after_s:.1f} s after the first step")
                try:
                    _hit(kind, folder, after_s, row, run_s)
                    _judge(row, whole)
                except AssertionError as error:
                    row.wrong = str(error).partition("\n")[0]
                    print(error, flush=True)
                rows.append(row)
                print(_line(row), flush=True)
                _write(kept + [asdict(row) for row in rows], whole)
    return 1 if any(row.wrong for row in rows) else 0


class Missed(Exception):
    """The run was over before its moment came."""


def _hit(kind: str, folder: Path, after_s: float, row: Row, usual_s: float) -> None:
    """Let a fault happen; a run that was over too soon is no trial: another one, at an earlier moment."""
    for moment_s in (after_s, after_s / 2, after_s / 4):
        try:
            row.moment = f"{moment_s:.1f} s after the first step"
            return FAULTS[kind](folder, moment_s, row, usual_s)
        except Missed:
            continue
    raise AssertionError("the run was over each time before its moment came")


def _undisturbed(folder: Path) -> tuple[dict[str, Any], float, float]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ray-") as ray, _training(folder, ray) as run:
        run.wait_for(r"^Training on")
        first = time.monotonic()
        run.wait_for(r"^Scoring")
        training_s = time.monotonic() - first
        assert run.end(within_s=END_WITHIN_S) == 0, run.output
        return _metrics(run), training_s, time.monotonic() - began


def _worker(folder: Path, after_s: float, row: Row, usual_s: float) -> None:
    _kill_one("ray::RayTrainWorker", folder, after_s, row, usual_s)


def _controller(folder: Path, after_s: float, row: Row, usual_s: float) -> None:
    _kill_one("ray::ImplicitFunc", folder, after_s, row, usual_s)


def _kill_one(title: str, folder: Path, after_s: float, row: Row, usual_s: float) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray:
        with _training(folder, ray) as run:
            run.wait_for(r"^Training on")
            time.sleep(after_s)
            found = find(title, below=run.process.pid)
            if not found or any(line.startswith("Scoring") for line in run.lines):
                raise Missed
            kill(random.choice(found))
            done = _epochs(run)
            assert run.end(within_s=END_WITHIN_S) == 0, run.output
        _close(run, row, done, began, usual_s)
        row.leftovers = len(_left(Path(ray), run))


def _driver(folder: Path, after_s: float, row: Row, usual_s: float) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray:
        with _training(folder, ray) as run:
            run.wait_for(r"^Training on")
            time.sleep(after_s)
            if any(line.startswith("Scoring") for line in run.lines):
                raise Missed
            run.process.kill()
            run.process.wait()
            done = _epochs(run)
        killed = time.monotonic()
        model = max((folder / "models/DIGITS/drill").glob("*/*"), key=lambda path: path.name)
        resume = f"resume={model.relative_to(folder)}"
        with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as second:
            with _training(folder, second, settings=(resume,)) as again:
                again.wait_for(r"^Training")
                assert again.end(within_s=END_WITHIN_S) == 0, again.output
            _close(again, row, done, began, usual_s)
            row.leftovers = len(_left(Path(second), again))
        while processes_of(Path(ray)) and time.monotonic() - killed < GONE_WITHIN_S:
            time.sleep(1)
        row.leftovers += len(processes_of(Path(ray)))


def _node(folder: Path, after_s: float, row: Row, usual_s: float) -> None:
    _take_node(folder, after_s, row, usual_s, notice_s=0)


def _drain(folder: Path, after_s: float, row: Row, usual_s: float) -> None:
    _take_node(folder, after_s, row, usual_s, notice_s=3)


def _take_node(folder: Path, after_s: float, row: Row, usual_s: float, *, notice_s: int) -> None:
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray:
        own = {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": ray, "TMPDIR": _scratch(ray)}
        os.environ |= own
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2 * 10**8})
        try:
            nodes = [cluster.add_node(num_cpus=1, object_store_memory=2 * 10**8) for _ in range(2)]
            cluster.wait_for_nodes(timeout=60)
            began = time.monotonic()
            with _training(folder, ray, address=cluster.address) as run:
                run.wait_for(r"^Training on")
                time.sleep(after_s)
                lost = next((node for node in nodes if _has_worker(node)), None)
                if lost is None:
                    raise Missed
                if notice_s:
                    _give_notice(cluster.address, lost.node_id, notice_s)
                    time.sleep(notice_s)
                cluster.remove_node(lost, allow_graceful=False)
                done = _epochs(run)
                assert run.end(within_s=END_WITHIN_S) == 0, run.output
            _close(run, row, done, began, usual_s)
            left = of_ours(cluster.address, own)
        finally:
            cluster.shutdown()
            for key in own:
                del os.environ[key]
        row.leftovers = len(left) + len(_left(Path(ray), run))


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


def _training(folder: Path, ray: str, *, settings: tuple[str, ...] = (*SETTINGS, "category=drill"), **more: Any) -> Any:
    own = {"RAY_TMPDIR": ray, "TMPDIR": _scratch(ray), "RAY_AUTH_MODE": "disabled"}
    return training(folder, *settings, environment=own, **more)


def _scratch(ray: str) -> str:
    scratch = Path(ray) / "scratch"
    scratch.mkdir(exist_ok=True)
    return str(scratch)


def _epochs(run: Run) -> int:
    """How many epochs a run has told of."""
    return sum(line.startswith("Epoch ") for line in run.lines)


def _close(run: Run, row: Row, done: int, began: float, usual_s: float) -> None:
    metrics = _metrics(run)
    on = [line for line in run.lines if line.startswith("Training goes on with epoch")]
    row.epochs_lost = max(0, done - int(on[-1].split()[5])) if on else done if row.fault == "driver" else 0
    row.epochs, row.accuracy, row.loss = metrics["epochs"], round(metrics["accuracy"], 4), round(metrics["loss"], 4)
    row.seconds_more = round(time.monotonic() - began - usual_s, 1)


def _metrics(run: Run) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run.model / "train_info/metrics.json").read_text())
    return metrics


def _left(ray: Path, run: Run) -> list[str]:
    """Processes, temporary files, and what is hidden in the model folder."""
    deadline = time.monotonic() + 15
    while processes_of(ray) and time.monotonic() < deadline:
        time.sleep(0.5)
    hidden = [str(file) for file in run.model.rglob(".*")]
    left = [*processes_of(ray), *scratch_files(Path(_scratch(str(ray)))), *hidden]
    if left:
        print("\n".join(left), flush=True)
    return left


def _judge(row: Row, whole: dict[str, Any]) -> None:
    assert row.accuracy is not None and row.loss is not None and row.epochs_lost is not None
    if row.epochs != whole["epochs"]:
        row.wrong = f"{row.epochs} epochs instead of {whole['epochs']}"
    elif abs(row.loss - whole["loss"]) > LOSS_TOLERANCE or abs(row.accuracy - whole["accuracy"]) > ACCURACY_TOLERANCE:
        row.wrong = "other metrics than the undisturbed run"
    elif row.epochs_lost > 1:
        row.wrong = "more than an epoch was lost"
    elif row.leftovers:
        row.wrong = "something was left behind"


def _said(metrics: dict[str, Any]) -> str:
    return f"{metrics['epochs']} epochs, accuracy {metrics['accuracy']:.4f}, loss {metrics['loss']:.4f}"


def _line(row: Row) -> str:
    return (
        f"{row.fault:<11} {row.moment:<30} epochs lost {row.epochs_lost}, trained {row.epochs}, accuracy {row.accuracy}, "
        f"loss {row.loss}, {row.seconds_more} s more, leftovers {row.leftovers}  {row.wrong or 'ok'}"
    )


def _kept() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(FILE.read_text())["rows"] if FILE.is_file() else []
    return rows


def _write(rows: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    """After each fault: a drill that is ended early has its rows."""
    document = {
        "rows": rows,
        "undisturbed": {key: whole[key] for key in ("epochs", "accuracy", "loss")},
        "machine": {"cores": len(os.sched_getaffinity(0)), "gpus": 0},
        "versions": {name: version(name) for name in ("ray", "torch", "lightning")},
        "date": datetime.now(UTC).date().isoformat(),
    }
    FILE.write_text(json.dumps(document, indent=2) + "\n")


FAULTS = {"worker": _worker, "controller": _controller, "driver": _driver, "node": _node, "drain": _drain}

if __name__ == "__main__":
    sys.exit(main())
