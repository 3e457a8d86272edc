"""A real endpoint over real HTTP for this folder, and pictures of every kind."""

import contextlib
import io
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classifier.model_folder import read_manifest, write_manifest
from classifier.onnx_export import export_onnx
from classifier.preprocess import load_pixels
from tests.conftest import write_tiny_model

# Serve's processes read these when Ray starts: load is reported often enough for a test to see replicas come and go.
os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.25")
os.environ.setdefault("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.25")
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")

LABELS = ("cat", "dog", "emu", "fox")
Deploy = Callable[..., str]


@pytest.fixture(scope="package")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with more classes than an answer has labels."""
    folder = tmp_path_factory.mktemp("serving") / "models" / "ANIMALS" / "default" / "2026-11-22" / "14-03-55"
    return write_animals(folder, seed=1)


@pytest.fixture(scope="package")
def serve_url(ray_once: None) -> Iterator[str]:
    """Ray Serve on a free port of this machine."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()  # its replicas hold CPUs that other folders' tests need


@pytest.fixture(scope="package")
def deploy(serve_url: str) -> Deploy:
    """Deploy a model under a route, and get its URL."""
    from ray import serve

    from serving import app
    from serving.options import DeployArgs

    def deploy_at(route: str, **args: object) -> str:
        serve.run(app.deploy(DeployArgs.model_validate(args)), name=route.strip("/") or "default", route_prefix=route)
        return serve_url + route.rstrip("/")

    return deploy_at


@pytest.fixture(scope="package")
def url(deploy: Deploy, animals: Path) -> str:
    """The endpoint that most tests talk to."""
    return deploy("/", model=str(animals), max_upload_mb=1, max_batch_files=8, max_batch_mb=2, max_queue_mb=4)


@pytest.fixture(scope="package")
def guarded(deploy: Deploy, animals: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An endpoint with a key, room for one request, which a batch holds for a second, and little patience."""
    file = tmp_path_factory.mktemp("key") / "key.txt"
    file.write_text("open sesame\n")
    limits = {"max_queue": 1, "upload_timeout_s": 0.5, "batch_wait_ms": 1000}
    return deploy("/guarded", model=str(animals), backend="torch", api_key_file=file, **limits)


def write_animals(folder: Path, *, seed: int) -> Path:
    """A model as training leaves it: with a `model.onnx` that was measured to be faster, so that PyTorch is not loaded."""
    write_tiny_model(folder, labels=LABELS, seed=seed)
    pixels = load_pixels(encoded(photo(seed), "JPEG"), read_manifest(folder).preprocess)
    manifest = export_onnx(folder, pixels[np.newaxis])
    assert manifest.onnx is not None and manifest.onnx.kept
    report = manifest.onnx.model_copy(update={"speedup": 2.0})  # whatever this machine was busy with
    write_manifest(folder, manifest.model_copy(update={"onnx": report}))
    return folder


def scrape() -> str:
    """The metrics of this machine, as Prometheus gets them."""
    import ray
    import requests

    (node,) = ray.nodes()
    return requests.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10).text


def free_port() -> int:
    """Below the range from which the system gives ports out: Ray takes many of those."""
    for port in np.random.default_rng(os.getpid() + time.monotonic_ns()).integers(20_000, 30_000, 50):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("0.0.0.0", int(port)))
            return int(port)
    raise RuntimeError("no free port between 20,000 and 30,000")


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def photo(seed: int = 0, size_px: tuple[int, int] = (96, 64)) -> Image.Image:
    """A smooth picture that is not symmetric, so that a lost rotation shows."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size_px, Image.Resampling.BICUBIC)


def pictures_of_every_kind() -> dict[str, bytes]:
    """What phones, scanners and graphics programs write."""
    base = photo(7)
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = base.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(base.size))
    deep = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
    frames = [photo(8), photo(9)]
    return {
        "plain.jpg": encoded(base, "JPEG"),
        "rotated.jpg": encoded(base, "JPEG", exif=exif),
        "cmyk.jpg": encoded(base.convert("CMYK"), "JPEG"),
        "grey.jpg": encoded(base.convert("L"), "JPEG"),
        "palette.png": encoded(base.quantize(16), "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "photo.webp": encoded(base, "WEBP"),
        "photo.tiff": encoded(base, "TIFF"),
        "photo.bmp": encoded(base, "BMP"),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    }
