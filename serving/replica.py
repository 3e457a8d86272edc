"""One process of the endpoint: a model for life, pictures in, probabilities out.

A request is decoded and checked in a thread before it joins a batch, so a bad picture is its sender's error and never
its neighbours'. Batches form across requests, and run in a thread of their own: the event loop only ever waits.
"""

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from classifier import image as images
from classifier.errors import BadImage, BadModelFolder, TooManyBytes
from classifier.preprocess import load_pixels
from serving.options import DeployArgs
from serving.room import Room

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@dataclass(frozen=True)
class Settings:
    """What a replica is started with, complete: a swap starts the next ones with the same and another model."""

    args: DeployArgs  # `model` is an absolute path, `device` is cpu or gpu
    digest: str  # of the model that was deployed
    key_digest: str | None

    @property
    def threads(self) -> int:
        """What computes in one replica: as many threads as the CPUs that it reserves."""
        return max(1, int(self.args.cpus_per_replica))


class Classified(NamedTuple):
    """What the network says of one picture."""

    probabilities: np.ndarray  # float32 [C]
    note: str | None


class Replica:
    """Loads the model, answers a picture, and only then counts as started."""

    def __init__(self, settings: Settings) -> None:
        from ray import serve

        from classifier.predict import Predictor
        from serving.meters import Meters

        self.settings = settings
        self.meters = Meters()
        args = settings.args
        self.predictor = Predictor.load(
            Path(args.model), device=args.device, backend=args.backend, threads=settings.threads
        )
        found = self.predictor.manifest.digest
        if found != settings.digest:
            raise BadModelFolder(
                f"{settings.args.model} has changed since it was deployed: its digest is {found[:19]}, expected "
                f"{settings.digest[:19]}; deploy it again"
            )
        self.room = Room(max_pictures=args.max_queue, max_bytes=args.max_queue_bytes)
        # One thread: a Predictor on a GPU is not safe for concurrent calls, and on CPUs it fills its threads by itself.
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        # A replica of one CPU decodes in that thread too: more of them would only take the interpreter from each other.
        is_one_cpu = settings.threads == 1 and settings.args.device == "cpu"
        self._decoders = self._device_thread if is_one_cpu else ThreadPoolExecutor(settings.threads)
        self._batched: Callable[[np.ndarray], Awaitable[np.ndarray]] = serve.batch(
            self._run_batch,
            max_batch_size=settings.args.max_batch_size,
            batch_wait_timeout_s=settings.args.batch_wait_ms / 1000,
        )
        for size in {1, settings.args.max_batch_size}:
            self.predictor.warm_up(batch_size=size)
        pixels, _ = self._load(_grey_jpeg())
        self._probabilities([pixels])

    def __serve_build_asgi_app__(self) -> "ASGIApp":
        from serving.ingress import build_api

        return build_api(self)

    def get_settings(self) -> Settings:
        """For `serving.swap`, through a deployment handle."""
        return self.settings

    async def classify(self, data: bytes) -> Classified:
        """From the bytes of a picture to its probabilities.

        Raises:
            BadImage: or one of its children.
        """
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        pixels, note = await loop.run_in_executor(self._decoders, self._load, data)
        self.meters.decoded(time.perf_counter() - start)
        return Classified(await self._batched(pixels), note)

    def _load(self, data: bytes) -> tuple[np.ndarray, str | None]:  # uint8 [3,H,W]
        limit = self.settings.args.max_upload_bytes
        if len(data) > limit:
            raise TooManyBytes(f"{len(data):,} bytes; at most {limit:,} are read. Send a smaller picture")
        pixels = load_pixels(data, self.predictor.spec)
        return pixels, _note(data, self.predictor.spec.max_pixels)

    async def _run_batch(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        rows = await loop.run_in_executor(self._device_thread, self._probabilities, pixels)
        self.meters.forwarded(len(pixels), time.perf_counter() - start)
        return rows

    def _probabilities(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.predictor.probabilities(np.stack(pixels)))


def _note(data: bytes, max_pixels: int) -> str | None:
    if data[:2] == b"\xff\xd8":  # a JPEG has one picture; a phone's second one in the file (MPO) is no animation
        return None
    try:
        header = images.read_header(data, max_pixels=max_pixels)
    except BadImage:  # its pixels could be decoded, so it has its answer all the same
        return None
    return "The file has several frames; the first one was classified." if header.animated else None


def _grey_jpeg() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (127, 127, 127)).save(stream, "JPEG")
    return stream.getvalue()
