"""The terminal belongs to the user: ours is what it shows, all other output goes to a log file."""

import contextlib
import datetime
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from classifier.errors import ClassifierError, Interrupted

# What a terminal obeys, shown as what it is: \x1b could clear the screen.
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_SOME_UNREADABLE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class Terminal:
    """The user's terminal, set apart from file descriptors 1 and 2.

    Ray prints from threads and from other processes, and libraries in C print to descriptor 2 directly: only swapping
    the descriptors themselves catches all of it.
    """

    def __init__(self) -> None:
        self._stdout, self._stderr = os.dup(1), os.dup(2)
        descriptor, name = tempfile.mkstemp(prefix="classifier-", suffix=".log")
        self._log = Path(name)
        self._keep = False
        self._redirect(descriptor)
        is_terminal = os.isatty(self._stdout)
        self.out = os.fdopen(os.dup(self._stdout), "w", buffering=1, encoding="utf-8", errors="replace")
        # A pipe or a file has no width: 80 columns would fold paths that people copy.
        width = None if is_terminal else 160
        self.console = Console(file=self.out, width=width, highlight=False, soft_wrap=True, emoji=False)

    @property
    def is_interactive(self) -> bool:
        """Whether a live line can be redrawn."""
        return self.console.is_terminal

    @property
    def log(self) -> Path:
        """Where everything that is not ours goes."""
        return self._log

    def say(self, text: str = "") -> None:
        """Print a line. Nothing in it is interpreted, neither markup nor control codes: it may hold a file's name."""
        self.console.print(text.translate(_SHOWN), markup=False)

    def keep_log_in(self, file: Path) -> None:
        """Move the log to its place, once there is one; what was written so far goes along.

        An earlier command's log stays, above a line with the date.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        with self._log.open("rb") as written, file.open("ab") as kept:
            if kept.tell():
                kept.write(f"\n---- {datetime.datetime.now():%Y-%m-%d %H:%M:%S} ----\n".encode())
            shutil.copyfileobj(written, kept)
        self._redirect(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
        if not self._keep:
            self._log.unlink(missing_ok=True)
        self._log, self._keep = file, True

    def keep_log(self) -> None:
        """Keep the log where it is, because a message names it."""
        self._keep = True

    def close(self) -> None:
        """Give the descriptors back, and remove a log that nobody was told of."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(self._stdout, 1)
        os.dup2(self._stderr, 2)
        os.close(self._stdout)
        os.close(self._stderr)
        with contextlib.suppress(OSError, ValueError):
            self.out.close()
        if not self._keep:
            self._log.unlink(missing_ok=True)

    @staticmethod
    def _redirect(descriptor: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


@contextlib.contextmanager
def _terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    try:
        yield terminal
    finally:
        terminal.close()


def run_command(command: Callable[[list[str], Terminal], int], arguments: list[str]) -> int:
    """Run a command's body, and turn whatever it raises into one line and an exit code.

    Args:
        command: takes the command line's arguments and the terminal, returns the exit code.
        arguments: `sys.argv[1:]`.

    Returns:
        what the process should exit with: 2 for what the user can mend, 130 for Ctrl-C, 1 for our own faults.
    """
    with _terminal() as terminal:
        try:
            return command(arguments, terminal)
        except (KeyboardInterrupt, Interrupted) as error:
            terminal.say(str(error) or "Stopped.")
            return EXIT_INTERRUPTED
        except ClassifierError as error:
            terminal.say(f"Error: {error}")
            return EXIT_BAD_INPUT
        except Exception as error:
            traceback.print_exc()
            terminal.keep_log()
            summary = " ".join(f"{type(error).__name__}: {error}".split())
            terminal.say(f"Failed: {summary[:400]}\nThe whole story is in {terminal.log}")
            return EXIT_FAILED


@contextlib.contextmanager
def on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on the first Ctrl-C (or SIGTERM), and interrupt at once on the second."""

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
