"""What a replica has room for: so many pictures, so many bytes of request bodies. More are refused."""

from collections.abc import Iterator
from contextlib import contextmanager

from serving.problem import Refused

_RETRY_AFTER_S = 1


class Room:
    """What all requests hold together, and may hold."""

    def __init__(self, *, max_pictures: int, max_bytes: int) -> None:
        self.max_pictures = max_pictures
        self.max_bytes = max_bytes
        self.pictures = 0
        self.bytes = 0

    @contextmanager
    def place(self) -> Iterator["Place"]:
        """A place for a request of one picture.

        Raises:
            Refused: 503 when all are taken: a queue that grows only makes everybody wait longer.
        """
        place = Place(self)
        place.take_pictures(1)
        try:
            yield place
        finally:
            self.pictures -= place.pictures
            self.bytes -= place.bytes


class Place:
    """What one request holds, until it is answered."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.pictures = 0
        self.bytes = 0

    def take_pictures(self, count: int) -> None:
        """Raises Refused (503) when the other requests leave no room. What they leave may be less than `count`: else a
        request of many pictures would get in only when there are no others."""
        others = self._room.pictures - self.pictures
        if others >= self._room.max_pictures:
            raise _busy(f"{others} pictures wait here already")
        self.pictures += count
        self._room.pictures += count

    def take_bytes(self, count: int) -> None:
        """Raises Refused (503) when there is no room for that many more."""
        if self._room.bytes + count > self._room.max_bytes:
            raise _busy(f"the pictures that wait here already have {self._room.bytes:,} bytes")
        self.bytes += count
        self._room.bytes += count


def _busy(why: str) -> Refused:
    return Refused(503, "busy", f"{why}; try again in {_RETRY_AFTER_S} s", {"Retry-After": str(_RETRY_AFTER_S)})
