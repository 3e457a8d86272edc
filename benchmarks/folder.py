"""The folder job against others and against the limit: `python -m benchmarks.folder --weights FOLDER --photos FOLDER`.

Same model folder, same pictures, same cores, one after the other in every round, each in a process of its own; ratios
are those of a round. Peers keep their answers in memory; the job writes a JSON each and its ledger, and is timed so.

    pipeline     `transformers.pipeline("image-classification")` over the files, batched
    loader       a PyTorch DataLoader loop: decode and resize in a worker for each core, forward in batches
    limit        cores x what one core alone reaches with decode + forward, one thread, nothing written

The model folder is measured without `model.onnx` (the same engine as the peers) and with it, as training leaves it.

`--memory` measures the peak of all processes of the job instead, for 10,000 and 100,000 small pictures.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.report import row, write

ROOT = Path(__file__).resolve().parents[1]
BATCH = 32
CPU_BATCH = 8  # what one core is fastest with
COUNT, SMALL_COUNT = 2000, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="a Hugging Face image classifier's folder")
    parser.add_argument(
        "--photos", type=Path, required=True, help="class folders of photos; repeated to fill the count"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=COUNT, help="photos in the large folder")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments.model, arguments.input)))
        return
    with tempfile.TemporaryDirectory(prefix="folder-bench-") as name:
        scratch = Path(name)
        rows = _memory(scratch) if arguments.memory else _speed(arguments, scratch)
    write("folder", rows)


def _speed(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    model = _model_folder(arguments.weights, arguments.photos, scratch / "m" / "BENCH" / "default" / "d" / "t")
    count = arguments.count
    with_onnx = _add_onnx(model, arguments.photos, scratch / "m" / "BENCH" / "default" / "d" / "onnx")
    many = _repeat(arguments.photos, scratch / "many", count)
    few = _repeat(arguments.photos, scratch / "few", SMALL_COUNT)
    rounds = []
    for number in range(arguments.rounds):
        found = {
            "ours": _job(model, many, scratch / f"out{number}"),
            "pipeline": _part("pipeline", arguments, model, many),
            "loader": _part("loader", arguments, model, many),
            "limit": _part("core", arguments, model, few),
            "ours_few": _job(model, few, scratch / f"few{number}"),
            "pipeline_few": _part("pipeline", arguments, model, few),
        }
        found["limit"]["steady"] *= len(os.sched_getaffinity(0))
        found["onnx"] = _job(with_onnx, many, scratch / f"onnx{number}")
        found["limit_onnx"] = _part("core", arguments, with_onnx, few)
        found["limit_onnx"]["steady"] *= len(os.sched_getaffinity(0))
        shutil.rmtree(scratch / f"out{number}")
        print(f"round {number + 1}:", {name: round(times["steady"], 1) for name, times in found.items()}, flush=True)
        rounds.append(found)
    many_once, many_whole = f"{count} photos, pictures/s once running", f"{count} photos, pictures/s, whole command"
    few_whole = f"{SMALL_COUNT} photos, pictures/s, whole command"
    limit, pipeline, loader = "cores x one core", "transformers.pipeline", "torch DataLoader"
    return [
        _row(rounds, many_once, "steady", ("ours", "limit"), limit, ">= 0.9"),
        _row(rounds, many_once, "steady", ("ours", "pipeline"), pipeline, ">= 2.5"),
        _row(rounds, many_once, "steady", ("ours", "loader"), loader, ">= 1.0"),
        _row(rounds, many_whole, "whole", ("ours", "pipeline"), pipeline, ">= 1.0"),
        _row(rounds, many_whole, "whole", ("ours", "loader"), loader, ">= 1.0"),
        _row(rounds, f"{many_once}, model.onnx", "steady", ("onnx", "limit_onnx"), limit, ">= 0.75"),
        _row(rounds, f"{many_once}, model.onnx", "steady", ("onnx", "pipeline"), pipeline, ">= 2.5"),
        _row(rounds, few_whole, "whole", ("ours_few", "pipeline_few"), pipeline, ">= 1.0"),
    ]


def _row(
    rounds: list[dict[str, Any]], what: str, key: str, names: tuple[str, str], peer: str, bar: str
) -> dict[str, Any]:
    """One of the rates of two contenders, in every round."""
    ours, theirs = names
    return row(what, [(found[ours][key], found[theirs][key]) for found in rounds], peer=peer, bar=bar)


def _job(model: Path, source: Path, target: Path, *settings: str) -> dict[str, float]:
    began = time.perf_counter()
    command = [sys.executable, "-m", "serving.batch", f"md={model}", f"predict.input_dir={source}"]
    subprocess.run(
        [*command, f"predict.output_dir={target}", *settings], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    whole = time.perf_counter() - began
    summary = json.loads((target / "summary.json").read_text())
    assert summary["predicted"] == summary["listed"] > 0
    return {"steady": summary["steady_pictures_per_s"], "whole": summary["predicted"] / whole}


def _part(name: str, arguments: argparse.Namespace, model: Path, source: Path) -> dict[str, float]:
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.folder", "--part", name, "--model", str(model), "--input", str(source)]
    command += ["--weights", str(arguments.weights), "--photos", str(arguments.photos)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    whole = time.perf_counter() - began
    found = json.loads(done.stdout.splitlines()[-1])
    return {"steady": found["steady"], "whole": found["count"] / whole}


def _pipeline(model: Path, source: Path) -> dict[str, float]:
    from transformers import pipeline

    files = [str(file) for file in sorted(source.rglob("*.jpg"))]
    classify = pipeline("image-classification", model=str(model), device="cpu")
    return _timed((1 for _ in classify((file for file in files), batch_size=BATCH, top_k=3)), len(files))


def _loader(model: Path, source: Path) -> dict[str, float]:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    files = sorted(source.rglob("*.jpg"))
    processor = AutoImageProcessor.from_pretrained(str(model))
    network = AutoModelForImageClassification.from_pretrained(str(model)).eval()

    class Photos(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, place: int) -> torch.Tensor:
            with Image.open(files[place]) as photo:
                pixels: torch.Tensor = processor(photo.convert("RGB"), return_tensors="pt")["pixel_values"][0]
            return pixels

    batches = DataLoader(Photos(), batch_size=BATCH, num_workers=len(os.sched_getaffinity(0)))
    answers: list[torch.Tensor] = []

    def counts() -> Any:
        with torch.inference_mode():
            for pixels in batches:
                answers.append(network(pixels).logits.softmax(1).topk(3).indices)
                yield len(pixels)

    return _timed(counts(), len(files))


def _core(model: Path, source: Path) -> dict[str, float]:
    import numpy as np
    import torch

    from classifier.image import read_file
    from classifier.predict import Predictor
    from classifier.preprocess import load_pixels

    torch.set_num_threads(1)
    files = sorted(source.rglob("*.jpg"))
    predictor = Predictor.load(model, device="cpu")

    def counts() -> Any:
        for start in range(0, len(files), CPU_BATCH):
            chunk = files[start : start + CPU_BATCH]
            predictor.probabilities(np.stack([load_pixels(read_file(file), predictor.spec) for file in chunk]))
            yield len(chunk)

    return _timed(counts(), len(files))


PARTS = {"pipeline": _pipeline, "loader": _loader, "core": _core}


def _timed(counts: Any, total: int) -> dict[str, float]:
    """Rate from the second batch on: the first one pays for lazy initialisation, as the job's first outcome does."""
    done, skipped, began = 0, 0, 0.0
    for count in counts:
        done += count
        if not skipped and done >= BATCH:
            skipped, began = done, time.perf_counter()
    assert done == total
    return {"steady": (done - skipped) / (time.perf_counter() - began), "count": total}


def _memory(scratch: Path) -> list[dict[str, Any]]:
    import numpy as np
    from PIL import Image

    from tests.conftest import write_tiny_model

    model = write_tiny_model(scratch / "m" / "BENCH" / "default" / "d" / "t", labels=("cat", "dog"), seed=0)
    originals = scratch / "originals"
    originals.mkdir()
    for seed in range(100):
        noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(originals / f"{seed}.jpg")
    peaks = {}
    for count in (10_000, 100_000):
        source = _repeat(originals, scratch / f"in{count}", count)
        peaks[count], seconds = _peak_mib(model, source, scratch / f"out{count}")
        print(f"{count:,} pictures: peak {peaks[count]:,.0f} MiB, {seconds:.0f} s", flush=True)
        shutil.rmtree(scratch / f"out{count}")
    what = "peak memory of all processes for 100,000 pictures, MiB"
    return [row(what, [(peaks[100_000], peaks[10_000])], peer="the same for 10,000 pictures", bar="<= 1.25")]


def _peak_mib(model: Path, source: Path, target: Path) -> tuple[float, float]:
    """The largest sum of proportional set sizes of a job's processes, Ray's own included, sampled every half second."""
    command = [sys.executable, "-m", "serving.batch", f"md={model}", f"predict.input_dir={source}"]
    began = time.perf_counter()
    process = subprocess.Popen([*command, f"predict.output_dir={target}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    peak, ended = 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.5):
            peak = max(peak, sum(_pss_kib(pid) for pid in _family(process.pid)) / 1024)

    sampler = threading.Thread(target=sample)
    sampler.start()
    code = process.wait()
    ended.set()
    sampler.join()
    assert code == 0, code
    return peak, time.perf_counter() - began


def _family(root: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _pss_kib(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _repeat(photos: Path, target: Path, count: int) -> Path:
    """A folder of `count` files, the photos again and again under other names."""
    originals = sorted(photos.rglob("*.jpg"))
    target.mkdir(parents=True)
    copies: dict[Path, Path] = {}
    for number in range(count):
        original, name = originals[number % len(originals)], target / f"{number // 1000:03}" / f"{number:06}.jpg"
        name.parent.mkdir(exist_ok=True)
        if original in copies:
            os.link(copies[original], name)
        else:
            copies[original] = Path(shutil.copyfile(original, name))
    return target


def _model_folder(weights: Path, photos: Path, folder: Path) -> Path:
    from classifier import image
    from classifier.model_folder import write_model
    from classifier.network import load_network
    from classifier.processor import load_preprocess

    labels = tuple(sorted(entry.name for entry in photos.iterdir() if entry.is_dir()))
    spec = load_preprocess(str(weights), size_px=None, max_pixels=image.MAX_PIXELS)
    network = load_network(str(weights), labels=labels, spec=spec)
    write_model(folder, network, name="BENCH", labels=labels, spec=spec, dataset={}, metrics={}, created="")
    return folder


def _add_onnx(model: Path, photos: Path, folder: Path) -> Path:
    """The same model as training leaves it, with `model.onnx`, which the job then takes on CPUs."""
    import numpy as np

    from classifier.model_folder import read_manifest
    from classifier.onnx_export import export_onnx
    from classifier.preprocess import load_pixels

    shutil.copytree(model, folder)
    spec = read_manifest(folder).preprocess
    files = sorted(photos.rglob("*.jpg"))[:32]
    export_onnx(folder, np.stack([load_pixels(file.read_bytes(), spec) for file in files]))
    return folder


if __name__ == "__main__":
    main()
