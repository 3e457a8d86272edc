"""Pictures that were fine when the catalog was made, and cannot be read any more: counted, named, and not too many."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

UNREADABLE = "unreadable.csv"


class Unreadable(NamedTuple):
    """One of them."""

    filepath: str  # relative to the dataset
    split: str
    machine: str  # the one that tried
    reason: str


class UnreadableBook:
    """Those that one decoding has met so far."""

    def __init__(self, pictures: Mapping[str, int], *, max_share: float) -> None:
        """Open the book.

        Args:
            pictures: how many there are in each split.
            max_share: of all of them, how many may be unreadable; 0..1.
        """
        self._pictures, self._max_share = pictures, max_share
        self._found: dict[str, Unreadable] = {}  # by path: a task that runs again tells again
        self._in_split: Counter[str] = Counter()

    def add(self, split: str, machine: str, found: Mapping[str, str]) -> None:
        """A task of `machine` could not read these pictures of a split: path -> why."""
        for path, reason in found.items():
            if path not in self._found:
                self._in_split[split] += 1
            self._found[path] = Unreadable(path, split, machine, reason)

    @property
    def rows(self) -> list[Unreadable]:
        """Every one of them, in the order in which they were met."""
        return list(self._found.values())

    def too_many(self) -> str | None:
        """Why the run cannot go on; None when it can."""
        for split, count in self._in_split.items():
            if count == self._pictures[split]:
                first = next(row for row in self.rows if row.split == split)
                return f"no picture of the {split} split can be read any more ({_example(first)})"
        pictures, most = sum(self._pictures.values()), self._max_share
        if len(self._found) <= most * pictures:
            return None
        return (
            f"{len(self._found)} of {pictures} pictures cannot be read any more ({_example(self.rows[0])}); at most "
            f"{most:.0%} may be bad: mend the folder on that machine, or raise data.max_bad_share"
        )


def _example(first: Unreadable) -> str:
    return f"the first is {first.filepath}: {first.reason}, on {first.machine}"


def first_note(found: Unreadable) -> str:
    """What is said when the first one is met: the run may last for hours."""
    return (
        f"A picture cannot be read any more: {found.filepath} ({found.reason}, on {found.machine}). Such pictures are left "
        "out and counted."
    )


def last_note(rows: Sequence[Unreadable], file: Path) -> str:
    """What is said at the end."""
    counts = Counter(row.split for row in rows)
    of_splits = ", ".join(f"{count:,} of {split}" for split, count in counts.items())
    pictures = "picture" if len(rows) == 1 else "pictures"
    return f"{len(rows):,} {pictures} could not be read any more and left out ({of_splits}): {file} names each."


def write_unreadable(file: Path, rows: Sequence[Unreadable]) -> None:
    """Write them as CSV; none of them: remove what an earlier part of a resumed run wrote."""
    if not rows:
        file.unlink(missing_ok=True)
        return
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(Unreadable._fields)
        writer.writerows(rows)
