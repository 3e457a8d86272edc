"""What the whole suite shares: one Ray, one tiny real model, where the photos are if they are here."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Nothing in the suite may reach for the hub; the tests that need it to fail rely on that.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny networks: a second thread gains nothing, and on a busy machine waiting for it costs minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Of the S3 server below. Here, because Ray's workers have the environment that Ray was started in.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "suite",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # rclone takes no checksum behind an upload's last byte
}

SHARED = Path(__file__).resolve().parents[2] / "shared"

TINY_CONFIG = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photos and checkpoints beside the repository."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the photos and checkpoints in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def ray_once() -> Iterator[None]:
    """One Ray for the whole session: starting it takes seconds. Its dashboard is there: it tells of tasks, too."""
    from cluster.session import ray_session, started_ahead, use_one_arena

    use_one_arena()
    with started_ahead(["training.ahead"], address=None), ray_session(address=None, admission_cpus=6) as session:
        is_up = threading.Event()
        session.show_dashboard(lambda _: is_up.set())
        assert is_up.wait(timeout=60)
        yield


@dataclass(frozen=True)
class S3:
    """An S3 server of this machine: `rclone serve s3`. Its buckets are the folders of a folder."""

    folder: Path
    endpoint: str  # host:port
    process: "subprocess.Popen[bytes]"

    def url(self, path: str) -> str:
        """A URL that says where the server is."""
        return f"s3://{path}?endpoint_override={self.endpoint}&scheme=http&region=us-east-1"

    def stop(self) -> None:
        """It does not answer any more."""
        self.process.kill()
        self.process.wait(timeout=10)


def start_s3(folder: Path) -> S3:
    """Serve a folder of buckets. What is changed in it after the first request must be changed by requests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    program = Path(sys.executable).with_name("rclone")
    keys = f"{os.environ['AWS_ACCESS_KEY_ID']},{os.environ['AWS_SECRET_ACCESS_KEY']}"
    options = ["--addr", endpoint, "--auth-key", keys, "--config", os.devnull]
    process = subprocess.Popen([program, "serve", "s3", *options, folder], stderr=subprocess.DEVNULL)
    host, _, port = endpoint.partition(":")
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return S3(folder, endpoint, process)
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "rclone serve s3 does not start"
            time.sleep(0.05)


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3]:
    """An S3 server with an empty bucket, `suite`."""
    (tmp_path / "s3" / "suite").mkdir(parents=True)
    server = start_s3(tmp_path / "s3")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in `models/PETS/default/2026-11-22/14-03-55`: two classes, 32 x 32 pixels, random weights."""
    folder = tmp_path_factory.mktemp("project") / "models" / "PETS" / "default" / "2026-11-22" / "14-03-55"
    return write_tiny_model(folder, labels=("cat", "dog"), seed=0)


def write_tiny_model(folder: Path, *, labels: tuple[str, ...], seed: int) -> Path:
    """Write a real, untrained model folder in milliseconds."""
    import torch

    from classifier import image
    from classifier.model_folder import write_model
    from classifier.network import load_network
    from classifier.processor import load_preprocess

    torch.manual_seed(seed)
    spec = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=TINY_CONFIG)
    network = load_network("tiny", labels=labels, spec=spec, config=TINY_CONFIG)
    write_model(
        folder,
        network,
        name="/".join(folder.parts[-4:]),
        labels=labels,
        spec=spec,
        dataset={"name": folder.parts[-4], "fingerprint": "sha256:0", "counts": {}},
        metrics={"accuracy": 0.9, "macro_f1": 0.9},
        created="2026-11-22T14:03:55",
    )
    return folder
