"""The load on an HTTP server: so many clients, each asking again as soon as it has its answer.

It shares the machine with the server that it measures, so it is cheap: requests are built beforehand, connections stay
open, and an answer is only looked at as far as its status and its length. What it costs itself is in the result.
"""

import asyncio
import statistics
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """What so many clients got in so many seconds."""

    per_s: float  # answers
    p50_ms: float
    p99_ms: float
    own_cores: float  # what the load itself took


def post(path: str, body: bytes) -> bytes:
    """A request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def ask(port: int, requests: list[bytes], *, clients: int, seconds: float) -> Measured:
    """Ask a server of this machine.

    Raises:
        RuntimeError: an answer was not 200, or none came.
    """
    return asyncio.run(_ask(port, requests, clients, seconds))


def ask_until_steady(port: int, requests: list[bytes], *, clients: int, limit_s: float) -> float:
    """Ask until the rate no longer rises: three stretches of 2 s within 5 % of each other.

    Returns:
        how many seconds it took; `limit_s` at most.
    """
    start, rates = time.monotonic(), []
    while time.monotonic() - start < limit_s:
        rates.append(ask(port, requests, clients=clients, seconds=2.0).per_s)
        if len(rates) >= 3 and min(rates[-3:]) >= 0.95 * max(rates[-3:]):
            break
    return time.monotonic() - start


async def _ask(port: int, requests: list[bytes], clients: int, seconds: float) -> Measured:
    loop = asyncio.get_running_loop()
    delays_s: list[float] = []
    processor, start = time.process_time(), time.perf_counter()
    visitors = [_Client(requests, number, delays_s, until=start + seconds) for number in range(clients)]
    await asyncio.wait_for(asyncio.gather(*(visitor.run(loop, port) for visitor in visitors)), seconds + 60)
    took = time.perf_counter() - start
    delays_s.sort()
    return Measured(
        per_s=len(delays_s) / took,
        p50_ms=statistics.median(delays_s) * 1000,
        p99_ms=delays_s[int(len(delays_s) * 0.99)] * 1000,
        own_cores=(time.process_time() - processor) / took,
    )


class _Client(asyncio.Protocol):
    """One client: a request, its answer, the next request, until the time is over."""

    def __init__(self, requests: list[bytes], number: int, delays_s: list[float], *, until: float) -> None:
        self._requests = requests
        self._number = number
        self._delays_s = delays_s
        self._until = until
        self._answer = b""
        self._asked = 0.0
        self._closed: asyncio.Future[None]
        self._transport: asyncio.Transport

    async def run(self, loop: asyncio.AbstractEventLoop, port: int) -> None:
        while time.perf_counter() < self._until:  # HAProxy closes connections when replicas have come or gone
            self._closed = loop.create_future()
            await loop.create_connection(lambda: self, "127.0.0.1", port)
            await self._closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end:
            return
        head = head.lower()
        if len(body) < int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]):
            return
        if not head.startswith(b"http/1.1 200"):
            self._fail(f"{head!r} {body[:200]!r}")
            return
        now = time.perf_counter()
        self._delays_s.append(now - self._asked)
        if now >= self._until or b"\r\nconnection: close" in head:
            self._transport.close()
        else:
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None or self._answer == b"":
            self._fail(f"connection lost without an answer: {error}")
        elif not self._closed.done():
            self._closed.set_result(None)

    def _ask(self) -> None:
        self._answer = b""
        self._number += 1
        self._asked = time.perf_counter()
        self._transport.write(self._requests[self._number % len(self._requests)])

    def _fail(self, why: str) -> None:
        if not self._closed.done():
            self._closed.set_exception(RuntimeError(why))
        self._transport.close()
