"""Training beside plain PyTorch and Lightning: `python -m benchmarks.training --weights FOLDER --photos FOLDER [PART ...]`.

Parts, each with its rows in `results/training.json`; without names `start`, `job`, `step`, `ingest` and `epoch`:

    start     the command to its first training step, beside a plain Lightning script (`benchmarks.lightning_peer`)
    job       a whole command of 1 epoch, beside the same script; job3, job10 and job30 are longer ones
    step      pictures/s of whole epochs, beside bare PyTorch loops over tensors in memory; with 1 worker, and with one a core
    precision validation accuracy in bf16 beside 32-bit floats, 3 seeds
    ingest    files to decoded pixels in a training process, beside a DataLoader, both in steady state: between the 10th
              and the 90th of 100 parts of the pictures; and reading them again
    epoch     what an epoch takes beyond its computing, by the worker's own clock
    memory    peak memory for 1,000, 10,000 and 100,000 pictures
    mfu       training of ViT-B/16 (random weights) beside the GPU's own matrix product

Every pair is measured one after the other, in processes of its own. Where PyTorch sees a GPU everything runs there, with
larger batches, and the rows go to `results/training-gpu.json`.
"""

import argparse
import contextlib
import csv
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import row, write
from classifier.predict import gpu_is_here
from cluster.sizing import physical_cores

ROOT = Path(__file__).resolve().parents[1]
ON_GPU = gpu_is_here()
BATCH, FEW = (128, 20_000) if ON_GPU else (16, 240)
SCRIPT = "plain Lightning script"
FORCED_TO_DISK, ON_DISK = "512x384 JPEG", 4_000
STEADY = 0.1, 0.9  # between which shares of an epoch's pictures its rate is taken: start and end are not in it
PLAIN_LOOP, BEST_LOOP = "bare loop as torch is by default", "best bare loop: channels_last, bf16 where it is faster"
PRECISION_EPOCHS = 8
LONG_EPOCHS = 10  # from here on more workers win back what their start costs
STEP_BARS = {"mobilenet-v2": ">= 1.5", "vit": ">= 1.0"}
EPOCHS = 12
DEVICE = "gpu" if ON_GPU else "cpu"
SHORT = ("augment=none", "callbacks.early_stopping=null", f"data.batch_size={BATCH}", f"trainer.device={DEVICE}")
VIT_B_16 = "vit-b-16"
MATRIX_SIDE = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--weights", type=Path, required=True, help="a Hugging Face image classifier's folder")
    parser.add_argument("--photos", type=Path, required=True, help="class folders of photos")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--count", type=int, default=20_000, help="pictures of the ingest benchmark")
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        print(json.dumps(INNER[arguments.inner](arguments)))
        return
    for part in arguments.parts or ("start", "job", "step", "ingest", "epoch"):
        with tempfile.TemporaryDirectory(prefix="training-bench-") as scratch:
            for made in PARTS[part](arguments, Path(scratch)):
                if ON_GPU:
                    write("training-gpu", [made], processor=_inner("gpu", arguments)["name"])
                else:
                    write("training", [made])


def _start(arguments: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    _train(arguments, scratch, epochs=1)  # so that the catalog is there, and the disk's cache warm
    here, joined = [], []
    for _ in range(arguments.pairs):
        theirs = _script(arguments, epochs=1, max_steps=2)["first_step_s"]
        here.append((_train(arguments, scratch, epochs=1)["first_step_s"], theirs))
    yield row("seconds from the command to the first step", here, peer=SCRIPT, bar="<= 2.5")
    with _cluster(scratch) as address:
        for _ in range(arguments.pairs):
            theirs = _script(arguments, epochs=1, max_steps=2)["first_step_s"]
            joined.append((_train(arguments, scratch, epochs=1, address=address)["first_step_s"], theirs))
    what = "seconds from the command to the first step, Ray running already"
    yield row(what, joined, peer=SCRIPT, bar="<= 1.5")


def _job(
    arguments: argparse.Namespace, scratch: Path, *, plans: tuple[tuple[int, str | None], ...]
) -> Iterator[dict[str, Any]]:
    for epochs, bar in plans:
        pairs, workers = [], physical_cores() if epochs >= LONG_EPOCHS else 1
        for _ in range(arguments.pairs if epochs == 1 else max(1, arguments.pairs // epochs)):
            ours = _train(arguments, scratch, epochs=epochs, workers=workers)["whole_s"]
            pairs.append((ours, _script(arguments, epochs=epochs)["whole_s"]))
        what = f"seconds for {epochs} epoch{'s' * (epochs > 1)} with validation, test and report"
        how = f", num_workers={workers}" if workers > 1 else ""
        yield row(f"{arguments.weights.name}: {what}{how}", pairs, peer=SCRIPT, bar=bar)


def _step(arguments: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """As many threads in all on every side; on a GPU one worker, with all that it has."""
    name, cores = arguments.weights.name, 1 if ON_GPU else physical_cores()
    bar = next((bar for kind, bar in STEP_BARS.items() if kind in name), None)
    few = _few(arguments, scratch)
    pairs: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for _ in range(arguments.pairs):
        loops = {which: _inner(which, arguments)["pictures_per_s"] for which in ("loop", "best_loop")}
        for workers in sorted({1, cores}):
            ours = _train(few, scratch, epochs=3, workers=workers)["pictures_per_s"]
            for which, theirs in loops.items():
                pairs.setdefault((workers, which), []).append((ours, theirs))
    for (workers, which), measured in pairs.items():
        how = f"{workers} worker{'s' * (workers > 1)} with {cores // workers} thread{'s' * (cores // workers > 1)}"
        yield row(
            f"{name}: training pictures/s of whole epochs, {'on a GPU' if ON_GPU else how}",
            measured,
            peer=PLAIN_LOOP if which == "loop" else BEST_LOOP,
            bar=bar if which == "loop" else ">= 0.95",
        )
    if cores > 1:
        several, one = ([ours for ours, _ in pairs[workers, "loop"]] for workers in (cores, 1))
        what = f"{name}: training pictures/s, a worker with 1 thread on each core"
        yield row(what, list(zip(several, one, strict=True)), peer="1 worker with all threads", bar=">= 0.9")


def _mfu(arguments: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Model FLOPs utilisation: what the network's arithmetic needs, beside what the GPU gives a matrix product."""
    if not ON_GPU:
        sys.exit("mfu: PyTorch sees no GPU here")
    own = argparse.Namespace(**{**vars(arguments), "weights": scratch / VIT_B_16})
    tflop = _inner("vit_b_16", own)["tflop_per_picture"]
    pairs = []
    for measured in _step(own, scratch):
        yield measured
        if measured["peer_name"] == BEST_LOOP:
            pairs = [(measured["ours"] * tflop, _inner("matrix", own)["tflop_per_s"])]
    what = f"{VIT_B_16}: TFLOP/s of forward and backward in training, on a GPU"
    yield row(what, pairs, peer=f"product of {MATRIX_SIDE} x {MATRIX_SIDE} matrices in bf16", bar=None)


def _precision(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Three seeds, the best validation accuracy of each run."""
    pairs = []
    for seed in (1, 2, 3):
        best = {}
        for precision in ("bf16", "32"):
            history = _train(
                arguments, scratch, f"seed={seed}", f"trainer.precision={precision}", epochs=PRECISION_EPOCHS, workers=2
            )["history"]
            best[precision] = max(float(epoch["val_acc"]) for epoch in history)
        print(f"seed {seed}: val_acc", best, flush=True)
        pairs.append((best["bf16"], best["32"]))
    what = f"{arguments.weights.name}: best val_acc of {PRECISION_EPOCHS} epochs in bf16, a pair for each of 3 seeds"
    return [row(what, pairs, peer="32-bit floats", bar=">= 0.95")]


def _epoch(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Whole epochs, less what the worker itself took in their steps and validation batches."""
    pairs, pictures = [], len(_photos(arguments.photos))
    for _ in range(arguments.pairs):
        history = _train(arguments, scratch, "model=tiny", "model.size_px=16", epochs=EPOCHS)["history"]
        around_s = statistics.median(float(epoch["seconds"]) - float(epoch["computing_s"]) for epoch in history[1:])
        pairs.append((around_s, 0.3))
    what = f"seconds of an epoch of {pictures} pictures that are not forward, backward, optimizer"
    return [row(what, pairs, peer="allowed", bar="<= 1.0")]


def _ingest(arguments: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    for name, count, make in (
        ("512x384 JPEG", arguments.count, functools.partial(_repeated, arguments.photos)),
        ("12 MP JPEG", max(80, arguments.count // 25), functools.partial(_drawn, size=(4000, 3000), suffix="jpg")),
        ("16 px PNG", arguments.count, functools.partial(_drawn, size=(16, 16), suffix="png")),
    ):
        folder = scratch / name.replace(" ", "-")
        make(folder, count)
        found = [
            (_inner("stream", arguments, folder), _inner("loader", arguments, folder)) for _ in range(arguments.pairs)
        ]
        first = [(ours["first_per_s"], theirs["per_s"]) for ours, theirs in found]
        again = [(ours["again_per_s"], ours["first_per_s"]) for ours, _ in found]
        what = f"{count:,} x {name}: pictures/s"
        yield row(f"{what} decoded, in steady state", first, peer="DataLoader, a worker a core", bar=">= 0.95")
        yield row(f"{what} read again from memory", again, peer="the first time", bar=">= 10")
        if name == FORCED_TO_DISK:
            disk = [_inner("stream_disk", arguments, folder) for _ in range(arguments.pairs)]
            pairs = [(each["again_per_s"], each["first_per_s"]) for each in disk]
            what = f"{min(count, ON_DISK):,} x {name}: pictures/s"
            yield row(f"{what} read again from disk", pairs, peer="the first time", bar=">= 4")
        shutil.rmtree(folder)


def _memory(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    import psutil

    from classifier.processor import load_preprocess
    from training.settings import read_settings

    config = read_settings(["ds=MANY", "model=tiny"])
    load_preprocess(  # later runs remember its answer: else only the first one would import PyTorch for it
        config.model.model_name,
        size_px=config.model.size_px,
        max_pixels=config.data.max_pixels,
        config=config.model.config,
        remember_in=scratch / "cache",
    )
    peaks = {}
    for count in (1_000, 10_000, 100_000):
        data = scratch / str(count)
        _drawn(data / "MANY", count, size=(16, 16), suffix="png")
        command = [sys.executable, "-m", "training.run", "ds=MANY", "model=tiny", "trainer.max_epochs=1", *SHORT]
        command += [f"paths.{key}={data if key == 'raw_data' else scratch / key}" for key in _PATHS]
        process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=_environment(None))
        peak: dict[str, float] = {}
        while process.poll() is None:
            for kind, mib in _memory_now(process).items():
                peak[kind] = max(peak.get(kind, 0.0), mib)
            time.sleep(0.5)
        assert process.returncode == 0, process.returncode
        peaks[count] = peak
        print(f"{count:,} pictures, MiB:", {kind: round(mib) for kind, mib in sorted(peak.items())}, flush=True)
        shutil.rmtree(data)
    growth = (peaks[100_000]["driver"] - peaks[10_000]["driver"]) * 1024 / 90_000
    kinds = [
        row(f"peak MiB of {kind} for {count:,} pictures of 16 px", [(peaks[count][kind], peaks[1_000][kind])],
            peer="1,000 pictures", bar=None)
        for kind in ("driver", "workers", "others", "shared memory") for count in (10_000, 100_000)
    ]  # fmt: skip
    return [row("KiB of driver memory for each picture more", [(growth, 1.0)], peer="allowed", bar="<= 1.0"), *kinds]


def _memory_now(process: Any) -> dict[str, float]:
    """MiB of a command's processes. What copies of a process share is counted in parts, so that the sum is what is taken."""
    import psutil

    found = {"driver": 0.0, "workers": 0.0, "others": 0.0, "shared memory": 0.0}
    for each in (process, *process.children(recursive=True)):
        try:
            name = " ".join(each.cmdline()[:1])
            rollup = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()
        except (psutil.Error, OSError):
            continue
        kib = {line.split()[0]: int(line.split()[1]) for line in rollup if line.endswith(" kB")}
        kind = "driver" if each.pid == process.pid else "workers" if "RayTrainWorker" in name else "others"
        found[kind] += kib["Pss_Anon:"] / 2**10
        found["shared memory"] += kib["Pss_Shmem:"] / 2**10
    return found


_PATHS = ("raw_data", "metadata", "cache", "models")


def _train(
    arguments: argparse.Namespace,
    scratch: Path,
    *settings: str,
    epochs: int,
    workers: int = 1,
    address: str | None = None,
) -> dict[str, Any]:
    """Our command; its first step is the moment when it says that it trains."""
    photos = arguments.photos.absolute()
    command = [sys.executable, "-u", "-m", "training.run", f"ds={photos.name}", f"paths.raw_data={photos.parent}"]
    command += [f"paths.{key}={scratch / key}" for key in _PATHS[1:]]
    if "model=tiny" not in settings:
        command.append(f"model.model_name={arguments.weights.absolute()}")
    began, first_step_s, model = time.time(), 0.0, ""
    with subprocess.Popen(
        [*command, f"num_workers={workers}", f"trainer.max_epochs={epochs}", *SHORT, *settings],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env=_environment(address),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Training on"):
                first_step_s = time.time() - began
            if line.startswith("Your model"):
                model = line.removeprefix("Your model has been saved in the ").removesuffix(" directory\n")
    assert process.returncode == 0, process.returncode
    history = list(csv.DictReader((ROOT / model / "train_info" / "history.csv").open()))
    rates = sorted(float(epoch["pictures_per_s"]) for epoch in history[1:] or history)
    return {
        "first_step_s": first_step_s,
        "whole_s": time.time() - began,
        "pictures_per_s": rates[len(rates) // 2],
        "history": history,
    }


def _script(arguments: argparse.Namespace, *, epochs: int, max_steps: int = -1) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.lightning_peer", str(arguments.weights), str(arguments.photos)]
    began = time.time()
    answer = subprocess.run(
        [*command, str(epochs), str(BATCH), str(max_steps)],
        cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    whole_s = time.time() - began
    return {"first_step_s": json.loads(answer.stdout.splitlines()[-1])["first_step_at"] - began, "whole_s": whole_s}


def _inner(name: str, arguments: argparse.Namespace, photos: Path | None = None) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "--inner", name, "--weights", str(arguments.weights)]
    answer = subprocess.run(
        [*command, "--photos", str(photos or arguments.photos)],
        cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    measured: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return measured


def _loop(arguments: argparse.Namespace, *, best: bool) -> dict[str, float]:
    """A bare loop over tensors that are in memory already."""
    import torch
    from torch.nn import functional
    from transformers import AutoModelForImageClassification

    from classifier.memory import keep_freed_memory
    from training.precision import keep_slow_in_float32, lightning_precision

    if best:
        keep_freed_memory()
    device = "cuda" if ON_GPU else "cpu"
    network = (
        AutoModelForImageClassification.from_pretrained(arguments.weights, num_labels=5, ignore_mismatched_sizes=True)
        .to(device)
        .train()
    )
    side_px = network.config.image_size
    pixels, labels = torch.rand(8 * BATCH, 3, side_px, side_px).to(device), torch.randint(0, 5, (8 * BATCH,)).to(device)
    if best:
        network = network.to(memory_format=torch.channels_last)
        if not ON_GPU:
            keep_slow_in_float32(network)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=best)
    bf16 = lightning_precision("auto", on_gpu=ON_GPU) == "bf16-mixed" and best
    wait = torch.cuda.synchronize if ON_GPU else lambda: None
    seconds, trained, began = 6.0, 0, 0.0
    while not began or time.perf_counter() - began < seconds:
        for place in range(0, len(pixels), BATCH):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
                logits = network(pixel_values=pixels[place : place + BATCH]).logits
            functional.cross_entropy(logits.float(), labels[place : place + BATCH]).backward()
            optimizer.step()
            optimizer.zero_grad()
            trained += BATCH
        wait()
        if not began:  # the first round is to warm up
            began, trained = time.perf_counter(), 0
    return {"pictures_per_s": trained / (time.perf_counter() - began)}


def _vit_b_16(arguments: argparse.Namespace) -> dict[str, float]:
    """Write a ViT-B/16 of random weights, and count what a picture needs of it in training."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    network = ViTForImageClassification(ViTConfig(num_labels=5))  # the defaults are ViT-B/16 at 224 px
    network.save_pretrained(arguments.weights)
    ViTImageProcessor().save_pretrained(arguments.weights)
    with FlopCounterMode(display=False) as counter:
        network(pixel_values=torch.rand(1, 3, 224, 224)).logits.sum().backward()
    return {"tflop_per_picture": counter.get_total_flops() / 1e12}


def _matrix(_: argparse.Namespace) -> dict[str, float]:
    """The rate of a large matrix product in bf16."""
    import torch

    left, right = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    began, rounds = 0.0, 100
    for number in range(rounds + 10):
        if number == 10:  # the first ones are to warm up
            torch.cuda.synchronize()
            began = time.perf_counter()
        torch.mm(left, right)
    torch.cuda.synchronize()
    return {"tflop_per_s": rounds * 2 * MATRIX_SIDE**3 / 1e12 / (time.perf_counter() - began)}


def _gpu(_: argparse.Namespace) -> dict[str, str]:
    import torch

    return {"name": torch.cuda.get_device_name()}


def _stream(arguments: argparse.Namespace, *, on_disk: bool) -> dict[str, float]:
    """Files through Ray Data and the Feed into this process, as a worker gets them; then again, in another order."""
    import numpy as np
    import ray

    from classifier.processor import load_preprocess
    from cluster.session import ray_session, started_ahead
    from cluster.sizing import admission_cpus, plan_training
    from training.batches import Pixels
    from training.feed import Feed, FeedPlan
    from training.stream import TASKS_A_CORE, decode_tasks

    spec = load_preprocess(str(arguments.weights), size_px=None, max_pixels=10**8)
    files = _shuffled(arguments.photos)[: ON_DISK if on_disk else None]
    size_bytes = sum(file.stat().st_size for file in files)
    with (
        started_ahead(["training.ahead"], address=None),
        ray_session(address=None, admission_cpus=admission_cpus(physical_cores(), 1)) as session,
        tempfile.TemporaryDirectory(prefix="shards-") as shards,
    ):
        plan = plan_training(session.capacity, num_workers=1, device="cpu")
        feed = ray.remote(num_cpus=0)(Feed).remote(
            FeedPlan(
                root=arguments.photos.absolute(),
                splits={"train": [str(file.relative_to(arguments.photos)) for file in files]},
                spec=spec,
                mean_bytes=size_bytes / len(files),
                decode_cpus=plan.decode_cpus / TASKS_A_CORE,
                decode_tasks=decode_tasks(cores=plan.decode_tasks, pictures=len(files), size_bytes=size_bytes),
                shards={"train": Path(shards)} if on_disk else None,
                name="bench",
                max_bad_share=0.0,
            )
        )
        feed.start.remote()
        pixels = Pixels(feed, "train")
        batches = np.array_split(np.arange(len(files)), len(files) // BATCH)
        first_per_s = _steady(len(pixels.rows(batch)[0]) for batch in batches)
        order = np.random.default_rng(0).permutation(len(files))
        began = time.perf_counter()
        for batch in batches:
            pixels.rows(order[batch])
        return {"first_per_s": first_per_s, "again_per_s": len(files) / (time.perf_counter() - began)}


def _loader(arguments: argparse.Namespace) -> dict[str, float]:
    """A DataLoader with a worker for each core, and the same decoding."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    from classifier.preprocess import load_pixels
    from classifier.processor import load_preprocess

    spec = load_preprocess(str(arguments.weights), size_px=None, max_pixels=10**8)
    files = _shuffled(arguments.photos)

    class Files(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, place: int) -> Any:
            return torch.from_numpy(load_pixels(files[place].read_bytes(), spec))

    batches = DataLoader(Files(), batch_size=BATCH, num_workers=physical_cores())
    return {"per_s": _steady(len(batch) for batch in batches)}


def _steady(counts: Iterable[int]) -> float:
    """Pictures/s from batches as they arrive: the slope of a line through those in the middle.

    A line, because some arrive in blocks of hundreds: between two batches much or nothing may have happened.
    """
    import numpy as np

    arrived = np.array([(count, time.perf_counter()) for count in counts])
    done, at_s = arrived[:, 0].cumsum(), arrived[:, 1]
    middle = (done >= STEADY[0] * done[-1]) & (done <= STEADY[1] * done[-1])
    return float(np.polyfit(at_s[middle] - at_s[0], done[middle], 1)[0])


def _shuffled(folder: Path) -> list[Path]:
    """Its files, as training takes them: large and small ones, and those of every class, in any order."""
    import random

    files = _photos(folder)
    random.Random(0).shuffle(files)
    return files


def _photos(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*/*") if file.is_file())


def _repeated(photos: Path, folder: Path, count: int) -> None:
    """`count` files, the photos over and over, as links."""
    files = _shuffled(photos)  # of every class, however few are taken
    for number in range(count):
        source = files[number % len(files)]
        target = folder / source.parent.name / f"{number:06d}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.absolute())


def _few(arguments: argparse.Namespace, scratch: Path) -> argparse.Namespace:
    """The same with as many photos as epochs of a few seconds take, for what does not depend on their number."""
    folder = scratch / "few" / "FEW"
    if not folder.is_dir():
        _repeated(arguments.photos, folder, FEW)
    return argparse.Namespace(**{**vars(arguments), "photos": folder})


def _drawn(folder: Path, count: int, *, size: tuple[int, int], suffix: str) -> None:
    """Pictures of noise on a gradient, in three classes; large ones are few and repeated."""
    import numpy as np
    from PIL import Image

    width_px, height_px = size
    different = count if width_px < 64 else 8
    ramp = np.linspace(0, 160, width_px, dtype=np.float32)[None, :, None] + np.zeros((height_px, 1, 3), np.float32)
    for number in range(count):
        target = folder / "abc"[number % 3] / f"{number:06d}.{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if number >= different:
            source = folder / "abc"[number % different % 3] / f"{number % different:06d}.{suffix}"
            target.symlink_to(source.absolute())
            continue
        noise = np.random.default_rng(number).integers(0, 90, (height_px // 8 or 1, width_px // 8 or 1, 3))
        coarse = np.asarray(Image.fromarray(noise.astype(np.uint8)).resize(size), dtype=np.float32)
        Image.fromarray((ramp + coarse).astype(np.uint8)).save(target)


@contextlib.contextmanager
def _cluster(scratch: Path) -> Iterator[str]:
    """`ray start --head` on ports of its own."""
    import psutil

    port, folder, cores = 6_399, scratch / "ray", len(os.sched_getaffinity(0))
    ray = Path(sys.executable).parent / "ray"
    options = (f"--port={port}", f"--num-cpus={cores + 1}", "--dashboard-port=8399", f"--temp-dir={folder}")
    try:
        subprocess.run(
            [ray, "start", "--head", *options], check=True, stdout=subprocess.DEVNULL, env=_environment(None)
        )
        yield f"127.0.0.1:{port}"
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if str(folder) in " ".join(process.info["cmdline"] or ()):
                process.kill()


def _environment(address: str | None) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return kept | ({"RAY_ADDRESS": address} if address else {}) | {"HF_HUB_OFFLINE": "1"}


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterable[dict[str, Any]]]] = {
    "start": _start,
    "job": functools.partial(_job, plans=((1, "<= 1.0"),)),
    "job3": functools.partial(_job, plans=((3, None),)),
    "job10": functools.partial(_job, plans=((10, "<= 0.6"),)),
    "job30": functools.partial(_job, plans=((30, "<= 0.45"),)),
    "step": _step,
    "precision": _precision,
    "ingest": _ingest,
    "epoch": _epoch,
    "memory": _memory,
    "mfu": _mfu,
}
INNER: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "loop": functools.partial(_loop, best=False),
    "best_loop": functools.partial(_loop, best=True),
    "stream": functools.partial(_stream, on_disk=False),
    "stream_disk": functools.partial(_stream, on_disk=True),
    "loader": _loader,
    "vit_b_16": _vit_b_16,
    "matrix": _matrix,
    "gpu": _gpu,
}

if __name__ == "__main__":
    main()
