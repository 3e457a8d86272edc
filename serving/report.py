"""What a folder job has done so far, and that it adds up."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from classifier.model_folder import Manifest
    from serving.stages import Outcome, Unreadable

_EXAMPLES = 5
_MOST_CLASSES = 20


@dataclass
class Report:
    """Counts over the outcomes of a run. Every picture that was listed is in exactly one of the three."""

    began: float  # time.monotonic() when the command began
    predicted: int = 0
    already_done: int = 0
    unreadable: int = 0
    classes: Counter[int] = field(default_factory=Counter)  # top codes, of the predicted and the done
    reasons: Counter[str] = field(default_factory=Counter)
    examples: "list[Unreadable]" = field(default_factory=list)
    _keys: list[np.ndarray] = field(default_factory=list)
    _first: tuple[float, int] | None = None  # when the first outcome came, and how many were done by then
    _last: float = 0.0

    def add(self, outcome: "Outcome") -> None:
        """Count an outcome."""
        self.predicted += outcome.predicted
        self.already_done += outcome.already_done
        self.unreadable += len(outcome.unreadable)
        self.classes += outcome.top_codes
        self.reasons.update(item.reason for item in outcome.unreadable)
        self.examples += outcome.unreadable[: _EXAMPLES - len(self.examples)]
        self._keys.append(outcome.keys)
        self._last = time.monotonic()
        if self._first is None:
            self._first = (self._last, self.done)

    @property
    def done(self) -> int:
        """Pictures that have come out, whatever became of them."""
        return self.predicted + self.already_done + self.unreadable

    @property
    def keys(self) -> np.ndarray:
        """`path_key` of every picture that has come out: uint64."""
        return np.concatenate(self._keys) if self._keys else np.empty(0, np.uint64)

    def steady_rate(self) -> float:
        """Pictures a second between the first and the last outcome: the work without the start-up. 0 when too short."""
        if self._first is None or self._last <= self._first[0]:
            return 0.0
        return (self.done - self._first[1]) / (self._last - self._first[0])

    def check(self, listed: int) -> None:
        """Prove that every listed picture came out once.

        Raises:
            RuntimeError: a fault of this program: the counts do not add up, or a picture came out twice.
        """
        once = len(np.unique(self.keys))
        if self.done != listed or once != listed:
            raise RuntimeError(
                f"{listed} pictures were listed, but {self.predicted} predicted + {self.unreadable} unreadable + "
                f"{self.already_done} already done = {self.done}, {once} of them different"
            )

    def summary(self, *, listed: int, others: int, manifest: "Manifest", seconds: float) -> dict[str, Any]:
        """What `summary.json` holds."""
        return {
            "listed": listed,
            "predicted": self.predicted,
            "unreadable": self.unreadable,
            "already_done": self.already_done,
            "other_files": others,
            "classes": {label: self.classes[code] for code, label in enumerate(manifest.labels)},
            "reasons": dict(self.reasons.most_common()),
            "seconds": round(seconds, 3),
            "pictures_per_s": round(self.predicted / seconds, 3) if seconds else 0.0,
            "steady_pictures_per_s": round(self.steady_rate(), 3),
            "model": {"name": manifest.name, "digest": manifest.digest},
        }

    def lines(self, *, listed: int, others: int, manifest: "Manifest", seconds: float) -> list[str]:
        """What the terminal shows at the end."""
        rate = self.steady_rate()
        speed = f", {rate:,.0f} a second once running" if rate else ""
        lines = [
            f"{listed:,} pictures: {self.predicted:,} predicted, {self.unreadable:,} unreadable, "
            f"{self.already_done:,} already done; {seconds:,.1f} s{speed}."
        ]
        if others:
            lines.append(f"{others:,} other files were left alone: no picture's suffix.")
        counts = [(manifest.labels[code], count) for code, count in self.classes.most_common()]
        if counts:
            width = max(len(label) for label, _ in counts[:_MOST_CLASSES])
            lines += [f"  {label:<{width}}  {count:>9,}" for label, count in counts[:_MOST_CLASSES]]
            if len(counts) > _MOST_CLASSES:
                lines.append(f"  and {len(counts) - _MOST_CLASSES:,} more classes")
        if self.reasons:
            lines.append(
                "Unreadable: " + ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
            )
            lines += [f"  {_printable(item.file)}: {item.message}" for item in self.examples]
            if self.unreadable > len(self.examples):
                lines.append(f"  and {self.unreadable - len(self.examples):,} more, in errors.csv")
        return lines


def _printable(name: str) -> str:
    """A file name as it is, unless it holds what would break the line."""
    return name if name.isprintable() else ascii(name)
