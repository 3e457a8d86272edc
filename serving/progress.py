"""One live line while a folder is predicted; where nothing can be redrawn, a plain line now and then."""

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.terminal import Terminal

_PLAIN_EVERY_S = 10.0


class ProgressLine:
    """`predicting 1,280 / 10,000   203 pictures/s   0:00:43`."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._live = Progress(
            TextColumn("predicting {task.fields[count]}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
            console=terminal.console,
            transient=True,
            disable=not terminal.is_interactive,
        )
        self._task = self._live.add_task("", total=None, count="", rate="")
        self._began = self._said = time.monotonic()
        self._first = 0

    def __enter__(self) -> "ProgressLine":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, done: int, listed: int, *, listing_ended: bool) -> None:
        """Show how far it is.

        Args:
            done: pictures that have come out.
            listed: pictures met so far.
            listing_ended: whether `listed` is all of them; until then no time left is given.
        """
        now = time.monotonic()
        if self._first == 0 and done:
            self._first, self._began = done, now  # the rate is that of the work, not of the start-up
        rate = (done - self._first) / (now - self._began) if now > self._began and done > self._first else 0.0
        count = f"{done:,} / {listed:,}{'' if listing_ended else '+'}"
        speed = f"{rate:,.0f} pictures/s" if rate else ""
        self._live.update(self._task, completed=done, total=listed if listing_ended else None, count=count, rate=speed)
        if not self._terminal.is_interactive and now - self._said >= _PLAIN_EVERY_S:
            left = f", {_duration((listed - done) / rate)} left" if rate and listing_ended else ""
            self._terminal.say(f"predicting {count}{', ' + speed if speed else ''}{left}")
            self._said = now


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
