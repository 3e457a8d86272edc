"""The endpoint beside LitServe: the same model, pictures and work, in one run, alternating.

    python -m benchmarks.serve [pairs=5] [seconds=4] [workers=2]

Both servers are up all the time and are asked in turns, so a slow minute of the machine hits both; what counts is the
ratio of each pair. `python -m serving.launch` is taken with its defaults.
"""

import asyncio
import contextlib
import io
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image

from classifier import image
from classifier.model_folder import write_model
from classifier.network import load_network
from classifier.predict import Predictor
from classifier.preprocess import load_pixels
from classifier.processor import load_preprocess

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = _ROOT / "benchmarks" / "results" / "serve.json"
_CONFIG = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [1, 1],
    "layer_type": "basic",
}
_OURS, _PEER = 18_801, 18_802


@dataclass(frozen=True)
class Measured:
    per_s: float
    p50_ms: float


def main(arguments: list[str]) -> None:
    options = {"pairs": "5", "seconds": "4", "workers": "2", **dict(pair.split("=", 1) for pair in arguments)}
    pairs, seconds = int(options["pairs"]), float(options["seconds"])
    with tempfile.TemporaryDirectory() as scratch:
        model = _write_model(Path(scratch) / "model")
        bodies = [_jpeg(seed) for seed in range(16)]
        ours = [sys.executable, "-m", "serving.launch", f"model={model}", f"port={_OURS}"]
        peer = [sys.executable, "-m", "benchmarks.litserve_peer", str(model), str(_PEER), options["workers"]]
        with _server(ours, f"http://127.0.0.1:{_OURS}/readyz"), _server(peer, f"http://127.0.0.1:{_PEER}/health"):
            rows = [
                *_compare(1, pairs, seconds, bodies),
                *_compare(16, pairs, seconds, bodies),
                *_compare(64, pairs, seconds, bodies),
            ]
        bare = statistics.median(_bare_loop(model, bodies, seconds) for _ in range(3))
        most = max(row["ours"] for row in rows if row["what"].startswith("requests/s"))
        rows.append(_row("pictures/s at best, beside decode + forward in one process without HTTP", "", [(most, bare)]))
        rows[-1]["peer_name"] = "bare loop, one thread"
    for row in rows:
        ratio = f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        print(f"{row['what']:60} ours {row['ours']:8.1f}  {row['peer_name']} {row['peer']:8.1f}  ratio {ratio}")
    result = {
        "rows": rows,
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "versions": {name: version(name) for name in ("ray", "litserve", "torch", "pillow", "uvicorn", "fastapi")},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def _compare(clients: int, pairs: int, seconds: float, bodies: list[bytes]) -> list[dict[str, object]]:
    _ask(_PEER, clients, 3.0, bodies)
    _ask(_OURS, clients, 3.0 if clients == 1 else 30.0, bodies)  # replicas come with the load; its workers are there
    measured = []
    for number in range(pairs):
        order = (_OURS, _PEER) if number % 2 == 0 else (_PEER, _OURS)
        found = {port: _ask(port, clients, seconds, bodies) for port in order}
        measured.append((found[_OURS], found[_PEER]))
    if clients == 1:
        values = [(ours.p50_ms, peer.p50_ms) for ours, peer in measured]
        return [_row("p50 in ms at 1 client (less is better)", "<= 1.1", values)]
    rates = _row(f"requests/s at {clients} clients", ">= 1.0", [(ours.per_s, peer.per_s) for ours, peer in measured])
    delays = [(ours.p50_ms, peer.p50_ms) for ours, peer in measured]
    return [rates, _row(f"p50 in ms at {clients} clients (less is better)", "", delays)]


def _row(what: str, bar: str, values: list[tuple[float, float]]) -> dict[str, object]:
    ratios = [ours / peer for ours, peer in values]
    return {
        "what": what,
        "ours": round(statistics.median(ours for ours, _ in values), 2),
        "peer": round(statistics.median(peer for _, peer in values), 2),
        "peer_name": "LitServe",
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "pairs": len(values),
        "bar": bar,
    }


def _ask(port: int, clients: int, seconds: float, bodies: list[bytes]) -> Measured:
    return asyncio.run(_ask_all(port, clients, seconds, bodies))


async def _ask_all(port: int, clients: int, seconds: float, bodies: list[bytes]) -> Measured:
    """Keep-alive clients that ask without a pause, over bare sockets: a full HTTP client would be what is measured."""
    requests = [
        b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies
    ]
    delays_s: list[float] = []
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            start = time.perf_counter()
            writer.write(requests[number % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"port {port}: {head!r} {answer[:200]!r}")
            delays_s.append(time.perf_counter() - start)
            number += 1
            if b"\r\nconnection: close" in head.lower():  # HAProxy has reloaded: replicas have come or gone
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return Measured(len(delays_s) / (time.perf_counter() - start), statistics.median(delays_s) * 1000)


def _bare_loop(model: Path, bodies: list[bytes], seconds: float) -> float:
    torch.set_num_threads(1)
    predictor = Predictor.load(model, device="cpu")
    predictor.warm_up(batch_size=len(bodies))
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        predictor.probabilities(np.stack([load_pixels(body, predictor.spec) for body in bodies]))
        done += len(bodies)
    return done / (time.perf_counter() - start)


@contextlib.contextmanager
def _server(command: list[str], ready_url: str) -> Iterator[None]:
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(_ROOT)}
    # A group of its own: LitServe's workers outlive their parent.
    process = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urlopen(ready_url, timeout=2):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(command)} did not come up") from None
                time.sleep(0.2)
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _write_model(folder: Path) -> Path:
    torch.manual_seed(0)
    labels = ("cat", "dog", "emu", "fox")
    spec = load_preprocess("tiny", size_px=224, max_pixels=image.MAX_PIXELS, config=_CONFIG)
    network = load_network("tiny", labels=labels, spec=spec, config=_CONFIG)
    write_model(
        folder, network, name="tiny", labels=labels, spec=spec, dataset={}, metrics={}, created="2026-01-01T00:00:00"
    )
    return folder


def _jpeg(seed: int) -> bytes:
    """640 x 480, with about the detail of a photo (60 KB)."""
    random = np.random.default_rng(seed)
    rough = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((640, 480))
    grain = random.integers(-12, 13, (480, 640, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(rough) + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])
