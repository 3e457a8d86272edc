"""The endpoint beside LitServe: the same pictures, network and work, in one run, alternating.

    python -m benchmarks.serve [pairs=5] [seconds=3] [workers=2] [engines=onnx,torch]

`python -m serving.launch`, which is `make serve`, with its defaults, then with `backend=torch`; its model folder has a
`model.onnx`, as training leaves it. LitServe answers with PyTorch. Both servers are up all the time and are asked in
turns, so a slow minute of the machine hits both; what counts is the ratio of each pair. Before that, both are asked by
as many clients until their rate no longer rises. The one that is not asked is stopped (SIGSTOP): Ray's own processes
take 0.15 cores when nobody asks anything.
"""

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
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.load import Measured, ask, ask_until_steady, post
from benchmarks.report import row
from classifier import image
from classifier.model_folder import write_model
from classifier.network import load_network
from classifier.onnx_export import export_onnx
from classifier.predict import BackendName, Predictor
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
_PORTS = {"ours": 18_801, "peer": 18_802}
_CLIENTS = (1, 16, 64)
_PEER = "LitServe"
_STEADY_LIMIT_S = 30
# What `make serve` answers with, and its bars: more is asked of the default.
_ENGINES: dict[BackendName, dict[int, str]] = {
    "onnx": {1: "<= 1.1", 16: ">= 1.3", 64: ">= 1.0"},
    "torch": {1: "<= 1.1", 16: ">= 1.0", 64: ">= 1.0"},
}


def main(arguments: list[str]) -> None:
    given = dict(pair.split("=", 1) for pair in arguments)
    options = {"pairs": "5", "seconds": "3", "workers": "2", "engines": ",".join(_ENGINES), **given}
    bodies = [_jpeg(seed) for seed in range(16)]
    load = os.getloadavg()[0]  # before ours
    with tempfile.TemporaryDirectory() as scratch:
        model = _write_model(Path(scratch) / "model", bodies)
        for engine in _ENGINES:
            if engine in options["engines"].split(","):
                _write(engine, _measure(engine, model, bodies, options), load)


def _measure(engine: BackendName, model: Path, bodies: list[bytes], options: dict[str, str]) -> list[dict[str, object]]:
    pairs, seconds = int(options["pairs"]), float(options["seconds"])
    requests = [post("/predict", body) for body in bodies]
    ours = [sys.executable, "-m", "serving.launch", f"model={model}", f"port={_PORTS['ours']}"]
    if engine != "onnx":  # its default
        ours.append(f"backend={engine}")
    peer = [sys.executable, "-m", "benchmarks.litserve_peer", str(model), str(_PORTS["peer"])]
    peer.append(f"workers={options['workers']}")
    rows: list[dict[str, object]] = []
    with _server(ours, "ours", "readyz") as first, _server(peer, "peer", "health") as second:
        servers = {"ours": first, "peer": second}
        for clients in _CLIENTS:
            rows += _compare(engine, clients, pairs, seconds, requests, servers)
    best = max(float(str(each["ours"])) for each in rows if "requests/s" in str(each["what"]))
    return [*rows, _bare_row(engine, best, model, bodies, seconds)]


def _write(engine: str, rows: list[dict[str, object]], load: float) -> None:
    """Into the result, in place of what it says of this engine."""
    before = json.loads(_RESULTS.read_text())["rows"] if _RESULTS.exists() else []
    result = {
        "rows": [each for each in before if each["what"].partition(", ")[0] in set(_ENGINES) - {engine}] + rows,
        "command": "python -m benchmarks.serve",
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, load {load:.1f} before",
        "versions": {name: version(name) for name in ("ray", "litserve", "torch", "onnxruntime", "pillow", "fastapi")},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def _compare(
    engine: BackendName,
    clients: int,
    pairs: int,
    seconds: float,
    requests: list[bytes],
    servers: dict[str, psutil.Process],
) -> list[dict[str, object]]:
    for port in _PORTS.values():
        ask_until_steady(port, requests, clients=clients, limit_s=_STEADY_LIMIT_S)

    def asked(name: str) -> Measured:
        with _stopped(servers["peer" if name == "ours" else "ours"]):
            return ask(_PORTS[name], requests, clients=clients, seconds=seconds)

    measured: list[tuple[Measured, Measured]] = []
    for number in range(pairs):
        order = ("ours", "peer") if number % 2 == 0 else ("peer", "ours")
        found = {name: asked(name) for name in order}
        measured.append((found["ours"], found["peer"]))
    delays = [(ours.p50_ms, peer.p50_ms) for ours, peer in measured]
    what = f"{engine}, p50 in ms at {clients} client{'s' if clients > 1 else ''}, less is better"
    bar = _ENGINES[engine][clients]
    measured_delay = row(what, delays, peer=_PEER, bar=bar if clients == 1 else None) | {
        "load_cores": _load_cores(measured)
    }
    if clients == 1:
        return [measured_delay]
    rates = [(ours.per_s, peer.per_s) for ours, peer in measured]
    measured_rate = row(f"{engine}, requests/s at {clients} clients", rates, peer=_PEER, bar=bar)
    return [measured_rate | {"load_cores": _load_cores(measured)}, measured_delay]


def _load_cores(measured: list[tuple[Measured, Measured]]) -> list[float]:
    """What asking took itself: beside ours, beside the peer."""
    return [round(statistics.median(pair[place].own_cores for pair in measured), 3) for place in (0, 1)]


def _bare_row(engine: BackendName, best: float, model: Path, bodies: list[bytes], seconds: float) -> dict[str, object]:
    """How far the limit is: decode and forward in one process and one thread, without HTTP."""
    predictor = Predictor.load(model, device="cpu", backend=engine, threads=1)
    predictor.warm_up(batch_size=len(bodies))

    def rate() -> float:
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            predictor.probabilities(np.stack([load_pixels(body, predictor.spec) for body in bodies]))
            done += len(bodies)
        return done / (time.perf_counter() - start)

    values = [(best, rate()) for _ in range(3)]
    return row(f"{engine}, requests/s at best, beside no HTTP", values, peer="one process, one thread", bar=None)


@contextlib.contextmanager
def _stopped(server: psutil.Process) -> Iterator[None]:
    """As if it were not there: all processes of a server stand still."""
    processes = [server, *server.children(recursive=True)]
    try:
        _signal(processes, signal.SIGSTOP)
        yield
    finally:
        _signal(processes, signal.SIGCONT)
        time.sleep(0.3)  # what its clocks have missed it does now


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextlib.contextmanager
def _server(command: list[str], name: str, ready: str) -> Iterator[psutil.Process]:
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(_ROOT)}
    # A group of its own: LitServe's workers outlive their parent.
    process = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{_PORTS[name]}/{ready}", timeout=2):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(command)} did not come up") from None
                time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _write_model(folder: Path, bodies: list[bytes]) -> Path:
    """As training leaves it, with random weights: answers take as long."""
    torch.manual_seed(0)
    labels = ("cat", "dog", "emu", "fox")
    spec = load_preprocess("tiny", size_px=224, max_pixels=image.MAX_PIXELS, config=_CONFIG)
    network = load_network("tiny", labels=labels, spec=spec, config=_CONFIG)
    write_model(
        folder, network, name="tiny", labels=labels, spec=spec, dataset={}, metrics={}, created="2026-01-01T00:00:00"
    )
    torch.set_num_threads(1)
    report = export_onnx(folder, np.stack([load_pixels(body, spec) for body in bodies])).onnx
    if report is None or not report.kept:
        raise RuntimeError(f"no model.onnx: {report}")
    return folder


def _jpeg(seed: int) -> bytes:
    """640 x 480, with more detail than most photos have (100 KB)."""
    random = np.random.default_rng(seed)
    rough = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((640, 480))
    grain = random.integers(-12, 13, (480, 640, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(rough) + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])
