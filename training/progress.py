"""What a person sees while a run goes on: one live line an epoch, and what has been decided so far."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from cluster.terminal import Terminal

if TYPE_CHECKING:
    from training.catalog import Catalog

# How far training is, is asked this often: for the bar of a terminal, or only for a worker that hangs. What there is to
# tell comes at once.
_BAR_S, _QUIET_S = 0.5, 2.0


class EpochProgress:
    """Watches the Feed actor from a thread, and prints.

    Use as a context manager around the run.
    """

    def __init__(
        self,
        terminal: Terminal,
        feed: Any,
        *,
        workers: int,
        pictures: int,
        max_epochs: int,
        monitor: str,
        max_failures: int,
        slow_after_s: float,
        on_start: Callable[[], None],
    ) -> None:
        """Prepare to watch.

        Args:
            terminal: the user's.
            feed: the actor.
            workers: how many the plan has.
            pictures: of the training split.
            max_epochs: how long the run may be.
            monitor: what is the best epoch's best.
            max_failures: how many the run outlives.
            slow_after_s: from when on what is waited for is named.
            on_start: is called once, when the first step is under way.
        """
        self._terminal, self._feed = terminal, feed
        self._pictures, self._max_epochs, self._monitor = pictures, max_epochs, monitor
        self._max_failures, self._slow_after_s = max_failures, slow_after_s
        self._on_start = on_start
        self._workers = workers  # those of the plan, then those that train
        self._has_started = self._has_failed = False
        self._no_room_s: float | None = time.monotonic()  # since when workers are waited for
        self._named: tuple[str, str] | None = None  # who was last said to be slow, and at what
        self._over = threading.Event()
        self._seen = 0
        self._epoch_started: tuple[int, float, int] | None = None  # epoch, time, first step seen
        self._told: int | None = None  # the last epoch that was told of
        self._test_pictures = 0  # how many are scored, once that has begun
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} pictures  {task.fields[note]}"),
            console=terminal.console,
            transient=True,
            disable=not terminal.is_interactive,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> "EpochProgress":
        self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with contextlib.suppress(Exception):  # it is gone: then nobody waits for it
            self._feed.wake.remote()
        self._thread.join(timeout=10)
        self._live.stop()

    def _watch(self) -> None:
        import ray

        wait_s = _BAR_S if self._terminal.is_interactive else _QUIET_S
        while not self._over.is_set():
            try:
                self._show(ray.get(self._feed.status.remote(self._seen, wait_s=wait_s), timeout=10))
            except Exception:
                if self._over.is_set() or not ray.is_initialized():
                    return
                self._over.wait(1)  # the actor is busy or gone; the run itself will say which
        try:
            self._show(ray.get(self._feed.status.remote(self._seen), timeout=10))
        except Exception:
            return

    def _show(self, status: dict[str, Any]) -> None:
        for event in status["events"]:
            self._seen += 1
            self._show_event(event)
        if status["workers"] and not self._has_failed:  # they have room, and load what they need
            self._no_room_s = None
        self._show_wait(status["slowest"])
        if status["place"] is not None:
            epoch, step = status["place"]
            self._show_place(epoch, step, status["steps"])

    def _show_event(self, event: dict[str, Any]) -> None:
        say = self._terminal.say
        match event["kind"]:
            case "started":
                workers = f"{event['world_size']} worker{'s' if event['world_size'] > 1 else ''}"
                again = self._has_started or event["epoch"] > 0
                last = event["last"]
                if self._has_started and last is not None and last["epoch"] != self._told:
                    self._show_event(last)
                say(
                    f"Training goes on with epoch {event['epoch']} on {workers}."
                    if again
                    else f"Training on {workers}."
                )
                if not self._has_started:
                    self._on_start()
                self._workers, self._has_started = event["world_size"], True
                self._no_room_s = self._named = None
                self._test_pictures = 0
            case "failure":
                self._drop_line()
                self._no_room_s, self._has_failed = time.monotonic(), True
                number, most = event["number"], self._max_failures
                then = "starting anew from the last checkpoint" if number <= most else "giving up"
                say(f"{event['text']}; {then} (failure {number}, trainer.max_failures={most}).")
            case "epoch":
                self._drop_line()
                self._told = event["epoch"]
                left = (self._max_epochs - 1 - event["epoch"]) * event["seconds"]
                is_best = " (best)" if event["best_epoch"] == event["epoch"] else ""
                losses = f"train_loss {event['train_loss']:.4f}  val_loss {event['val_loss']:.4f}"
                best = f"val_acc {event['val_acc']:.4f}{is_best}  best {self._monitor} {event['best']:.4f}"
                speed = f"{event['pictures_per_s']:,.0f} pictures/s  {event['seconds']:.1f} s"
                say(f"Epoch {event['epoch']:>3}  {losses}  {best}  {speed}, at most {duration(left)} left")
            case "testing":
                self._drop_line()
                self._test_pictures = event["pictures"]
                say(f"Scoring {event['pictures']} test pictures with the weights of epoch {event['best_epoch']}.")
            case "note":
                say(event["text"])

    def _show_wait(self, slowest: tuple[str, str, float] | None) -> None:
        """Name what the run waits for, once it has waited long."""
        if self._no_room_s is not None:
            if time.monotonic() - self._no_room_s > self._slow_after_s and self._named is None:
                self._named = ("", "")
                workers = f"{self._workers} worker{'s' if self._workers > 1 else ''}"
                where = "what is left of the cluster" if self._has_failed else "the cluster"
                self._terminal.say(f"Waiting for room for {workers} on {where} ...")
        elif slowest is not None and slowest[2] > self._slow_after_s:
            name, doing, since_s = slowest
            if self._named != (name, doing):
                self._named = (name, doing)
                others = "; the others wait for it" if self._workers > 1 else ""
                self._terminal.say(f"{name} has been {doing} for {duration(since_s)}{others}.")
        else:
            self._named = None

    def _show_place(self, epoch: int, step: int, steps: int) -> None:
        now = time.monotonic()
        if self._epoch_started is None or self._epoch_started[0] != epoch:
            self._epoch_started = (epoch, now, step)
        name, pictures = f"Epoch {epoch:>3}", self._pictures
        if self._test_pictures:
            name, pictures = "Test", self._test_pictures
        done = pictures * (step + 1) / steps
        if not self._terminal.is_interactive:
            return
        started = self._epoch_started[1]
        rate = pictures * (step - self._epoch_started[2]) / steps / max(0.2, now - started)
        left = (pictures - done) / rate if rate > 0 else None
        note = f"{rate:,.0f}/s" + (
            f", {duration(left)} left{'' if self._test_pictures else ' in this epoch'}" if left is not None else ""
        )
        if self._task is None or self._live.tasks[-1].description != name:
            self._drop_line()
            self._task = self._live.add_task(name, total=pictures, note="")
        self._live.update(self._task, completed=done, note=note)

    def _drop_line(self) -> None:
        if self._task is not None:
            self._live.remove_task(self._task)
            self._task = None


@contextlib.contextmanager
def counting(terminal: Terminal, what: str) -> Iterator[Callable[[int, int], None]]:
    """A live line for something that is counted; gives the function that is told (done, in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    live = Progress(*columns, console=terminal.console, transient=True, disable=not terminal.is_interactive)
    with live:
        task = live.add_task(what, total=None, visible=False)
        yield lambda done, total: live.update(task, completed=done, total=total, visible=True)


def show_dataset(terminal: Terminal, catalog: "Catalog") -> None:
    """What was found: how many pictures, what is set aside, which labels contradict each other."""
    from training.catalog import CONFLICTS, SET_ASIDE

    counts = catalog.counts()
    sizes = {split: sum(counts[split].values()) for split in ("train", "val", "test")}
    ready = "unchanged since the last run" if catalog.reused else "prepared"
    terminal.say(
        f"{sum(sizes.values()):,} pictures of {len(catalog.labels)} classes ({ready}): {sizes['train']:,} to train on, "
        f"{sizes['val']:,} to validate, {sizes['test']:,} to test."
    )
    if counts["set_aside"]:
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts["set_aside"].items())
        terminal.say(f"Set aside: {reasons}; {catalog.folder}/{SET_ASIDE} names each file.")
    conflicts = len(catalog.lists()[CONFLICTS])
    if conflicts:
        place = f"{catalog.folder}/{CONFLICTS}"
        terminal.say(f"{conflicts:,} pictures lie in more than one class with the same content; {place} names them.")


def show_results(terminal: Terminal, metrics: dict[str, Any]) -> None:
    """The table of test results."""
    table = Table(title="Test split", title_justify="left")
    for column in ("class", "precision", "recall", "F1", "pictures"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for label, row in metrics["per_class"].items():
        scores = (f"{row[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(label, *scores, str(row["support"]))
    terminal.console.print(table)
    terminal.say(
        f"Test accuracy {metrics['accuracy']:.4f}, macro F1 {metrics['macro_f1']:.4f}, loss {metrics['loss']:.4f} "
        f"(weights of epoch {metrics['best_epoch']}, {metrics['epochs']} epochs trained)."
    )


def duration(seconds: float) -> str:
    """`8 s`, `3 min`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
