"""The same network for ONNX Runtime: kept only when it answers alike, loaded without torch, never from elsewhere."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from classifier import image
from classifier.errors import BadModelFolder
from classifier.model_folder import OnnxReport, load_model, read_manifest, sha256, write_manifest, write_model
from classifier.network import Network, load_network
from classifier.onnx_backend import OnnxBackend
from classifier.onnx_export import export_onnx
from classifier.predict import Predictor
from classifier.preprocess import load_pixels
from classifier.processor import load_preprocess
from tests.classifier import test_network
from tests.conftest import write_tiny_model

PIXELS = np.random.default_rng(0).integers(0, 256, (11, 3, 32, 32), dtype=np.uint8)
OTHERS = {
    "swin": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
    },
    "convnext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "dinov2": {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder with its `model.onnx`."""
    folder = tmp_path_factory.mktemp("models") / "PETS" / "default" / "d" / "t"
    write_tiny_model(folder, labels=("cat", "dog", "fish"), seed=1)
    manifest = export_onnx(folder, PIXELS)
    assert manifest.onnx is not None
    assert manifest.onnx.kept, manifest.onnx.reason
    return folder


def with_speedup(folder: Path, place: Path, speedup: float) -> Path:
    """A copy whose manifest states another measurement."""
    shutil.copytree(folder, place)
    manifest = read_manifest(place)
    assert manifest.onnx is not None
    write_manifest(place, manifest.model_copy(update={"onnx": manifest.onnx.model_copy(update={"speedup": speedup})}))
    return place


def written(folder: Path, config: dict[str, Any]) -> Path:
    """A model folder of any architecture."""
    torch.manual_seed(0)
    spec = load_preprocess("tiny", size_px=32, max_pixels=image.MAX_PIXELS, config=config)
    labels = ("a", "b", "c")
    network = load_network("tiny", labels=labels, spec=spec, config=config)
    write_model(folder, network, name="x", labels=labels, spec=spec, dataset={}, metrics={}, created="2026-11-22")
    return folder


def test_both_backends_give_the_same_probabilities_at_any_batch_size(exported: Path) -> None:
    """The graph is traced with one batch size and must take all."""
    by_torch = Predictor.load(exported, backend="torch")
    by_onnx = Predictor.load(exported, backend="onnx", threads=1)
    assert (by_torch.backend, by_onnx.backend, by_onnx.device) == ("torch", "onnx", "cpu")
    for size in (1, 2, 3, 11):
        found = by_onnx.probabilities(PIXELS[:size])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, by_torch.probabilities(PIXELS[:size]), atol=1e-4)
    assert by_onnx.probabilities(PIXELS[:0]).shape == (0, 3)
    assert by_onnx.manifest == by_torch.manifest


@pytest.mark.parametrize(
    "config",
    [
        test_network.VIT,
        test_network.MOBILENET_V1,
        test_network.MOBILENET_V2,
        test_network.EFFICIENTNET,
        *({"model_type": name, **fields} for name, fields in OTHERS.items()),
    ],
    ids=lambda config: str(config["model_type"]),
)
def test_every_kind_of_network_is_exported_or_left_to_torch(tmp_path: Path, config: dict[str, Any]) -> None:
    """Convolutions, attention, windows: what cannot be traced leaves a folder that works all the same."""
    folder = written(tmp_path / "m", config)
    manifest = export_onnx(folder, PIXELS[:4])
    assert manifest == read_manifest(folder)
    assert manifest.onnx is not None
    assert manifest.onnx.kept, manifest.onnx.reason
    assert manifest.onnx.pictures == 4
    assert manifest.onnx.max_difference is not None
    assert manifest.onnx.max_difference <= 1e-4
    assert manifest.files["model.onnx"] == sha256(folder / "model.onnx")


def test_the_folder_holds_it_under_its_digest_and_nothing_else(exported: Path, tmp_path: Path) -> None:
    """`model.onnx` and the manifest change; weights and config stay as they were."""
    plain = write_tiny_model(tmp_path / "PETS" / "default" / "d" / "t", labels=("cat", "dog", "fish"), seed=1)
    before, after = read_manifest(plain), read_manifest(exported)
    assert {name: digest for name, digest in after.files.items() if name != "model.onnx"} == before.files
    assert before.digest != after.digest
    assert {entry.name for entry in exported.iterdir()} - {entry.name for entry in plain.iterdir()} == {"model.onnx"}
    assert load_model(exported).manifest == after


class _Sums(nn.Module):
    """A backbone whose answer depends on the batch: a traced graph of it is wrong at other sizes."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: torch.Tensor) -> Any:
        answer = self.backbone(pixel_values=pixel_values)
        answer.logits = answer.logits * len(pixel_values)
        return answer


class _Untraceable(_Sums):
    def forward(self, pixel_values: torch.Tensor) -> Any:
        raise RuntimeError("this network\ncannot be traced")


@pytest.mark.parametrize(("kind", "words"), [(_Sums, "differs by"), (_Untraceable, "this network cannot be traced")])
def test_a_graph_that_answers_differently_is_not_kept(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[_Sums], words: str
) -> None:
    """An older one goes with it, and the folder is as good as without."""
    folder = tmp_path / "m"
    shutil.copytree(exported, folder)
    before = Predictor.load(folder, backend="torch").probabilities(PIXELS)

    def changed(self: Network, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = kind(self.backbone)(self.normalise(pixels)).logits
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(Network, "forward", changed)
        manifest = export_onnx(folder, PIXELS)
    assert manifest.onnx is not None
    assert not manifest.onnx.kept
    assert words in manifest.onnx.reason
    assert not (folder / "model.onnx").exists()
    assert "model.onnx" not in manifest.files
    predictor = Predictor.load(folder)
    assert predictor.backend == "torch"
    assert np.array_equal(predictor.probabilities(PIXELS), before)
    with pytest.raises(BadModelFolder, match=rf"has no model\.onnx \(.*{words}.*set backend=torch"):
        Predictor.load(folder, backend="onnx")


@pytest.mark.parametrize(("speedup", "backend"), [(4.0, "onnx"), (1.0, "onnx"), (0.5, "torch")])
def test_auto_takes_what_was_measured_to_be_faster(
    exported: Path, tmp_path: Path, speedup: float, backend: str
) -> None:
    """By the measurement that the folder carries; at equal speed the one that starts sooner."""
    folder = with_speedup(exported, tmp_path / "m", speedup)
    assert Predictor.load(folder).backend == backend
    assert Predictor.load(folder, backend="torch").backend == "torch"
    assert Predictor.load(folder, backend="onnx").backend == "onnx"


def test_a_measurement_is_stated(exported: Path) -> None:
    """Both engines ran on the same pictures."""
    report = read_manifest(exported).onnx
    assert report is not None
    assert report.pictures == len(PIXELS)
    assert report.speedup is not None
    assert report.speedup > 0


def test_answers_come_without_torch_and_transformers(exported: Path, tmp_path: Path) -> None:
    """From the bytes of a picture to probabilities in a process that never imports them."""
    folder = with_speedup(exported, tmp_path / "m", 2.0)
    code = (
        "import sys; from pathlib import Path; from classifier.predict import Predictor;"
        "predictor = Predictor.load(Path(sys.argv[1]), threads=1); predictor.warm_up();"
        "print(predictor.backend, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "onnx []", done.stderr


def test_a_changed_or_missing_onnx_file_is_refused(exported: Path, tmp_path: Path) -> None:
    """By whichever backend: the folder is not what was written."""
    folder = with_speedup(exported, tmp_path / "m", 2.0)
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)
    for backend in ("auto", "onnx", "torch"):
        with pytest.raises(BadModelFolder, match=r"model\.onnx is not the file that was written"):
            Predictor.load(folder, backend=backend)
    (folder / "model.onnx").unlink()
    with pytest.raises(BadModelFolder, match=r"model\.onnx cannot be read"):
        Predictor.load(folder)


def test_an_onnx_file_that_the_manifest_does_not_cover_is_not_used(
    tiny_model: Path, exported: Path, tmp_path: Path
) -> None:
    """A crash between file and manifest leaves one; so does somebody's copy."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_model, folder)
    shutil.copy(exported / "model.onnx", folder)
    assert Predictor.load(folder).backend == "torch"
    with pytest.raises(BadModelFolder, match=r"has no model\.onnx"):
        Predictor.load(folder, backend="onnx")


def test_tensors_in_other_files_are_refused(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX can name any file of the machine as the place of a tensor."""
    parsed = onnx.load(str(exported / "model.onnx"))
    onnx.save_model(parsed, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadModelFolder, match="in another file"):
        OnnxBackend((tmp_path / "m.onnx").read_bytes())


def test_a_tensor_of_another_file_inside_a_branch_is_refused() -> None:
    """Subgraphs and attributes hold tensors as well."""
    tensor = onnx.helper.make_tensor("hidden", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    constant = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    branch = onnx.helper.make_graph([constant], "branch", [], [out])
    chosen = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    given = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])
    model = onnx.helper.make_model(onnx.helper.make_graph([chosen], "g", [given], [out]))
    with pytest.raises(BadModelFolder, match="hidden in another file"):
        OnnxBackend(model.SerializeToString())


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07", b"\x00" * 100])
def test_what_is_no_onnx_model_is_refused(content: bytes) -> None:
    """In one line, and without a word on descriptor 2."""
    with pytest.raises(BadModelFolder, match=r"model\.onnx") as caught:
        OnnxBackend(content)
    assert "\n" not in str(caught.value)


def test_manifests_written_before_still_load(tiny_model: Path, tmp_path: Path) -> None:
    """`onnx` is not needed in a manifest."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_model, folder)
    plain = json.loads((folder / "classifier.json").read_text())
    del plain["onnx"]
    (folder / "classifier.json").write_text(json.dumps(plain))
    assert read_manifest(folder).onnx is None
    assert Predictor.load(folder).backend == "torch"


def test_real_networks_on_real_photos(shared: Path, tmp_path: Path) -> None:
    """8 photos each: the largest difference of a probability stays ten times below the limit."""
    files = sorted(shared.glob("data/trashnet5/*/*"))[::75]
    for place in sorted((shared / "models").iterdir()):
        spec = load_preprocess(str(place), size_px=None, max_pixels=image.MAX_PIXELS)
        network = load_network(str(place), labels=("a", "b", "c"), spec=spec)
        folder = tmp_path / place.name
        write_model(
            folder, network, name="x", labels=("a", "b", "c"), spec=spec, dataset={}, metrics={}, created="2026-11-22"
        )
        report = export_onnx(folder, np.stack([load_pixels(file.read_bytes(), spec) for file in files])).onnx
        assert isinstance(report, OnnxReport)
        assert report.kept
        assert report.max_difference is not None
        assert report.max_difference < 1e-5
