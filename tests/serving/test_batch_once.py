"""What is done is not done again, and a killed run goes on where it stopped."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_tiny_model
from tests.serving.folders import REPOSITORY, job, picture, records, summary


def _ages(target: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in target.rglob("*.json") if file.name != "summary.json"}


def _counts(target: Path) -> tuple[int, int, int]:
    found = summary(target)
    return found["predicted"], found["unreadable"], found["already_done"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for seed in range(10):
        picture(tmp_path / "in" / f"{seed}.jpg", seed)
    return tmp_path / "in"


def test_a_second_run_computes_nothing_and_touches_nothing(tiny_model: Path, source: Path, tmp_path: Path) -> None:
    job(tiny_model, source, tmp_path / "out")
    classes, ages = summary(tmp_path / "out")["classes"], _ages(tmp_path / "out")

    assert job(tiny_model, source, tmp_path / "out") == 0

    assert _counts(tmp_path / "out") == (0, 0, 10)
    assert summary(tmp_path / "out")["classes"] == classes
    assert _ages(tmp_path / "out") == ages


def test_only_new_and_changed_pictures_are_computed(tiny_model: Path, source: Path, tmp_path: Path) -> None:
    """Content decides: a changed file with its old time and size is new, a touched one is not."""
    job(tiny_model, source, tmp_path / "out")
    before = records(tmp_path / "out")
    status = (source / "3.jpg").stat()
    data = (source / "3.jpg").read_bytes()
    picture(source / "3.jpg", 77)
    changed = (source / "3.jpg").read_bytes()
    size = max(len(data), len(changed))
    (source / "3.jpg").write_bytes(changed.ljust(size, b"\0"))
    os.utime(source / "3.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    (source / "4.jpg").touch()
    picture(source / "new" / "10.jpg", 10)

    job(tiny_model, source, tmp_path / "out")

    assert _counts(tmp_path / "out") == (2, 0, 9)
    after = records(tmp_path / "out")
    assert {name for name in before if after[name] != before[name]} == {"3.jpg.json"}


def test_a_picture_that_returns_to_an_older_content_is_computed_anew(
    tiny_model: Path, source: Path, tmp_path: Path
) -> None:
    """The result file holds the answer to the content in between, so the older ledger entry must not count."""
    job(tiny_model, source, tmp_path / "out")
    first, data = records(tmp_path / "out")["0.jpg.json"], (source / "0.jpg").read_bytes()
    picture(source / "0.jpg", 99)
    job(tiny_model, source, tmp_path / "out")
    assert records(tmp_path / "out")["0.jpg.json"] != first
    (source / "0.jpg").write_bytes(data)

    job(tiny_model, source, tmp_path / "out")

    assert records(tmp_path / "out")["0.jpg.json"] == first
    assert _counts(tmp_path / "out") == (1, 0, 9)


def test_an_unreadable_picture_is_tried_again_and_can_be_mended(tiny_model: Path, source: Path, tmp_path: Path) -> None:
    data = (source / "5.jpg").read_bytes()
    (source / "5.jpg").write_bytes(b"")
    assert job(tiny_model, source, tmp_path / "out") == 3
    assert job(tiny_model, source, tmp_path / "out") == 3
    assert _counts(tmp_path / "out") == (0, 1, 9)
    (source / "5.jpg").write_bytes(data)

    assert job(tiny_model, source, tmp_path / "out") == 0

    assert _counts(tmp_path / "out") == (1, 0, 9)
    assert "predictions" in records(tmp_path / "out")["5.jpg.json"]


def test_another_model_another_top_k_and_force_compute_anew(tiny_model: Path, source: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "m" / "a" / "b" / "c", labels=("cat", "dog"), seed=5)
    job(tiny_model, source, tmp_path / "out")
    first = records(tmp_path / "out")

    for model, settings in ((other, []), (tiny_model, []), (tiny_model, ["top_k=1"]), (tiny_model, ["force=true"])):
        job(model, source, tmp_path / "out", *settings)
        assert _counts(tmp_path / "out") == (10, 0, 0), settings

    assert records(tmp_path / "out") == first


def test_a_result_file_that_was_taken_away_is_made_again(tiny_model: Path, source: Path, tmp_path: Path) -> None:
    job(tiny_model, source, tmp_path / "out")
    before = records(tmp_path / "out")
    (tmp_path / "out" / "7.jpg.json").unlink()

    job(tiny_model, source, tmp_path / "out")

    assert _counts(tmp_path / "out") == (1, 0, 9)
    assert records(tmp_path / "out") == before


def test_a_result_that_another_picture_s_was_written_over_is_made_again(
    tiny_model: Path, source: Path, tmp_path: Path
) -> None:
    """Two input folders, or `file=`, and one folder for the results: they hold the last command's, and it counts so."""
    other, out = tmp_path / "other", tmp_path / "out"
    picture(other / "1.jpg", 50)
    job(tiny_model, source, out)
    first = records(out)

    for settings in ([f"predict.input_dir={other}"], [f"file={other / '1.jpg'}"]):
        job(tiny_model, source, out, *settings)
        assert records(out)["1.jpg.json"]["file"] == str(other / "1.jpg"), settings
        job(tiny_model, source, out)
        assert records(out) == first, settings
        assert _counts(out) == (1, 0, 9), settings

    job(tiny_model, source, out, f"file={source / '1.jpg'}")
    job(tiny_model, source, out)
    assert _counts(out) == (0, 0, 10), "its own answer was written there"


def test_a_result_that_is_not_the_ledger_s_is_made_again(tiny_model: Path, source: Path, tmp_path: Path) -> None:
    """Of a run that was killed before its ledger, torn by a loss of power, or of before a run that wrote a table only."""
    out = tmp_path / "out"
    job(tiny_model, source, out)
    first = records(out)
    (out / "2.jpg.json").write_bytes((out / "3.jpg.json").read_bytes())
    (out / "4.jpg.json").write_bytes(b"")
    picture(source / "5.jpg", 95)
    job(tiny_model, source, out, "predict.format=csv")

    job(tiny_model, source, out)

    assert _counts(out) == (3, 0, 7)
    after = records(out)
    assert {name for name in first if after[name] != first[name]} == {"5.jpg.json"}
    job(tiny_model, source, out)
    assert _counts(out) == (0, 0, 10)


def test_a_table_of_another_format_needs_no_computing(tiny_model: Path, source: Path, tmp_path: Path) -> None:
    job(tiny_model, source, tmp_path / "out")

    job(tiny_model, source, tmp_path / "out", "predict.format=csv")

    assert _counts(tmp_path / "out") == (0, 0, 10)
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 11


def test_a_table_holds_only_what_is_in_the_folder_now(tiny_model: Path, source: Path, tmp_path: Path) -> None:
    job(tiny_model, source, tmp_path / "out", "predict.format=jsonl")
    (source / "2.jpg").unlink()

    job(tiny_model, source, tmp_path / "out", "predict.format=jsonl")

    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 9


def test_two_runs_cannot_write_to_one_folder(
    tiny_model: Path, source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import fcntl

    (tmp_path / "out" / ".batch").mkdir(parents=True)
    with open(tmp_path / "out" / ".batch" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert job(tiny_model, source, tmp_path / "out") == 2

    assert "another run is writing there" in capfd.readouterr().out


# Imports everything once, then forks a run for each kill: a start of the interpreter each would take ten times as long.
_DRILL = """
import os, random, signal, sys, time
import classifier.predict, hydra, serving.folder, serving.progress, serving.report, serving.results, transformers
import transformers.models.resnet.modeling_resnet
from serving import batch
from cluster.terminal import run_command

def begin(arguments):
    child = os.fork()
    if child == 0:
        os._exit(run_command(batch.run, arguments))
    return child

def results(folder):
    return sum(name.endswith(".json") for _, _, names in os.walk(folder) for name in names)

kills, whole, out, *arguments = sys.argv[1:]
_, status = os.waitpid(begin([*arguments, f"predict.output_dir={whole}"]), 0)
assert os.waitstatus_to_exitcode(status) == 3, status
chance = random.Random(7)
killed = 0
for _ in range(int(kills)):
    enough = results(out) + chance.randint(0, 25)
    child = begin([*arguments, f"predict.output_dir={out}"])
    while results(out) <= enough and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += os.waitstatus_to_exitcode(status) == -signal.SIGKILL
_, status = os.waitpid(begin([*arguments, f"predict.output_dir={out}"]), 0)
print("killed", killed, "last", os.waitstatus_to_exitcode(status))
"""


def test_killed_ten_times_the_results_are_those_of_an_undisturbed_run(tiny_model: Path, tmp_path: Path) -> None:
    """kill -9 at random moments: file by file the same, tables too, and nothing half-written is left."""
    source, whole, out = tmp_path / "in", tmp_path / "whole", tmp_path / "out"
    for seed in range(300):
        picture(source / f"{seed % 7}" / f"{seed}.jpg", seed)
    (source / "bad.jpg").write_bytes(b"")
    settings = [f"md={tiny_model}", f"predict.input_dir={source}", "predict.ray_from=1000", "batch_size=4"]

    process = subprocess.run(
        [sys.executable, "-c", _DRILL, "10", whole, out, *settings, "predict.format=json,csv,jsonl"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )

    assert process.stdout.splitlines()[-1] == "killed 10 last 3", process.stdout[-2000:] + process.stderr[-2000:]
    assert _files(out) == _files(whole)
    assert len(records(out)) == 301
    assert _counts(out)[2] > 0, "the last run went on, it did not begin anew"
    assert list((out / ".batch" / "scratch").iterdir()) == []


def _files(target: Path) -> dict[str, bytes]:
    """Everything that a user sees in a results folder, but for what tells of the run itself."""
    return {
        str(file.relative_to(target)): file.read_bytes()
        for file in target.rglob("*")
        if file.is_file() and ".batch" not in file.parts and file.name != "summary.json"
    }


def test_an_interrupted_run_says_how_to_go_on(tiny_model: Path, tmp_path: Path, source: Path) -> None:
    """Ctrl-C ends between two chunks with 130; the same command does the rest."""
    for number in range(40):
        shutil.copytree(source, tmp_path / "many" / str(number))
    script = (
        "import os, signal, sys, threading, time\n"
        "from serving import batch, report\n"
        "from cluster.terminal import run_command\n"
        "add = report.Report.add\n"
        "def add_and_interrupt(self, outcome):\n"
        "    add(self, outcome)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "report.Report.add = add_and_interrupt\n"
        "sys.exit(run_command(batch.run, sys.argv[1:]))\n"
    )
    settings = [f"md={tiny_model}", f"predict.input_dir={tmp_path / 'many'}", f"predict.output_dir={tmp_path / 'out'}"]
    process = subprocess.run(
        [sys.executable, "-c", script, *settings, "predict.ray_from=1000"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert process.returncode == 130
    assert "Stopped after 8 pictures" in process.stdout
    assert "the same command goes on" in process.stdout
    assert job(tiny_model, tmp_path / "many", tmp_path / "out", "predict.ray_from=1000") == 0
    predicted, unreadable, already_done = _counts(tmp_path / "out")
    assert (predicted + already_done, unreadable) == (400, 0)
    assert already_done >= 8


def test_sigint_is_python_s_again_after_a_run(tiny_model: Path, source: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    job(tiny_model, source, tmp_path / "out")

    assert signal.getsignal(signal.SIGINT) is before
