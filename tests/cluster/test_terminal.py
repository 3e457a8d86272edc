"""The terminal is the user's: in real processes, with real descriptors, as a shell would start them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.terminal import on_interrupt, run_command

START = """
import os, subprocess, sys
from pathlib import Path
from classifier.errors import ClassifierError, ConfigError, Interrupted
from cluster.terminal import run_command
def command(arguments, terminal):
{body}
sys.exit(run_command(command, sys.argv[1:]))
"""


def run(tmp_path: Path, body: str, *arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """A command with this body; its temporary files lie in `tmp_path`."""
    indented = "\n".join(f"    {line}" for line in body.strip().splitlines())
    return subprocess.run(
        [sys.executable, "-c", START.format(body=indented), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        **options,  # type: ignore[call-overload]
    )


NOISE = """
print("python says")
os.write(1, b"C says on 1\\n")
os.write(2, b"C says on 2\\n")
subprocess.run(["echo", "a child says"], check=True)
terminal.say("hello " + arguments[0])
"""


def test_only_what_is_said_reaches_the_user_and_a_good_run_leaves_no_log(tmp_path: Path) -> None:
    """Python, C libraries and child processes all go to the log."""
    done = run(tmp_path, NOISE + "return 0", "you")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello you\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_ours_is_one_line_and_a_log_with_the_whole_story(tmp_path: Path) -> None:
    """The last line names the log; everything written before is in it."""
    done = run(tmp_path, NOISE + 'raise KeyError("two\\nlines")', "you")
    assert done.returncode == 1
    hello, failed, story = done.stdout.splitlines()
    assert hello == "hello you"
    assert failed == r"Failed: KeyError: 'two\nlines'"
    log = Path(story.removeprefix("The whole story is in ")).read_text()
    for line in ("python says", "C says on 1", "C says on 2", "a child says", "Traceback"):
        assert line in log
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("body", "code", "shown"),
    [
        ('raise ConfigError("ds: not set; set ds=EXAMS")', 2, "Error: ds: not set; set ds=EXAMS\n"),
        ('raise Interrupted("Stopped after epoch 3.")', 130, "Stopped after epoch 3.\n"),
        ("raise KeyboardInterrupt", 130, "Stopped.\n"),
        ("return 3", 3, ""),
        ("sys.exit(5)", 5, ""),
    ],
)
def test_every_way_to_end_has_its_exit_code(tmp_path: Path, body: str, code: int, shown: str) -> None:
    """2 is the user's to mend; nothing of it leaves a log."""
    done = run(tmp_path, body)
    assert (done.returncode, done.stdout, done.stderr) == (code, shown, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["[red]x[/red].jpg", "[/]", ":smile:.jpg", "a" * 400, "x" * 100 + " " + "y" * 100, "http://x/1.5", "{x}%s"]
)
def test_a_file_name_is_shown_as_it_is(tmp_path: Path, name: str) -> None:
    """Neither markup, nor emoji codes, nor colours, nor folding of what people copy."""
    done = run(tmp_path, "terminal.say(arguments[0])\nreturn 0", name)
    assert done.stdout == name + "\n"


def test_control_characters_of_a_file_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """They could clear the screen, or write a line that looks like ours."""
    done = run(tmp_path, 'terminal.say("a\\x1b[2Jb\\x07c\\rd \\x9b31m")\nreturn 0')
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(done.stdout)
    assert done.stdout == "a\\x1b[2Jb\\x07c\\x0dd \\x9b31m\n"


def test_a_name_that_is_no_text_is_shown_somehow(tmp_path: Path) -> None:
    """Linux takes any bytes as a name; it must not end a run."""
    done = run(tmp_path, 'terminal.say(os.fsdecode(b"caf\\xe9.jpg"))\nreturn 0')
    assert done.returncode == 0
    assert "caf" in done.stdout


def test_the_log_can_move_to_its_place(tmp_path: Path) -> None:
    """What was written before goes along, what comes later follows, and it stays."""
    place = tmp_path / "run.log"
    body = 'print("before")\nterminal.keep_log_in(Path(arguments[0]))\nprint("after")\nos.write(2, b"C\\n")\nreturn 0'
    done = run(tmp_path, body, str(place))
    assert (done.returncode, done.stdout) == (0, "")
    assert place.read_text() == "before\nafter\nC\n"
    assert list(tmp_path.iterdir()) == [place]


def test_an_earlier_commands_log_stays_above_a_dated_line(tmp_path: Path) -> None:
    """`resume=` must not take away why the run before it failed."""
    place = tmp_path / "run.log"
    place.write_text("before\n")
    run(tmp_path, 'print("now")\nterminal.keep_log_in(Path(arguments[0]))\nprint("after")\nreturn 0', str(place))
    assert re.fullmatch(r"before\n\n---- \d{4}-\d\d-\d\d [\d:]{8} ----\nnow\nafter\n", place.read_text())


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    """`| head -1`: no traceback."""
    body = "for number in range(100_000):\n    terminal.say(str(number))\nreturn 0"
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    script = tmp_path / "command.py"
    script.write_text(START.format(body=indented))
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {script} | head -1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path.cwd())},
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_the_callers_descriptors_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    """A command called inside a process leaves it as it was."""
    assert run_command(lambda arguments, terminal: os.write(1, b"to the log\n") and len(arguments), ["a", "b"]) == 2
    os.write(1, b"to the terminal\n")
    assert capfd.readouterr().out == "to the terminal\n"


def test_the_first_ctrl_c_asks_and_the_second_interrupts() -> None:
    """And afterwards the handlers are what they were."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    asked: list[int] = []
    with pytest.raises(KeyboardInterrupt), on_interrupt(lambda: asked.append(1)):
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == [1]
        os.kill(os.getpid(), signal.SIGINT)
    assert asked == [1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sigterm_asks_too() -> None:
    """Kubernetes and Docker send it before they kill."""
    asked: list[int] = []
    with on_interrupt(lambda: asked.append(1)):
        os.kill(os.getpid(), signal.SIGTERM)
    assert asked == [1]
