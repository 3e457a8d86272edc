"""In which numbers a network is trained: what bf16 must not make slow, and what it must not change."""

import copy
import ctypes
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classifier.memory import keep_freed_memory
from training.precision import keep_slow_in_float32


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.Conv2d(8, 8, 3, stride=2, groups=8),  # MobileNet's, with a stride
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 7, padding=3, groups=8),  # ConvNeXt's
        nn.Conv2d(8, 8, 3, stride=2, groups=4),
    )


def _outputs(network: nn.Sequential) -> list[Tensor]:
    outputs: list[Tensor] = []
    for module in network:
        module.register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(torch.rand(2, 3, 33, 33)).float().sum().backward()
    return outputs


def test_depthwise_convolutions_that_a_cpu_is_slow_at_stay_in_float32() -> None:
    """Those with a stride or a large kernel; the others are faster in bf16."""
    network = _network()
    keep_slow_in_float32(network)

    kinds = [output.dtype for output in _outputs(network)]

    assert kinds == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, torch.bfloat16]


def test_their_weights_keep_their_names_and_are_copied_with_the_network() -> None:
    """Checkpoints fit, and the moving average's copy computes with its own weights."""
    plain, network = _network(), _network()
    keep_slow_in_float32(network)
    averaged = copy.deepcopy(network)
    with torch.no_grad():
        averaged[1].weight.zero_()

    network.load_state_dict(plain.state_dict())

    pixels = torch.rand(2, 3, 33, 33)
    assert torch.equal(network(pixels), plain(pixels))
    assert not torch.equal(averaged(pixels), plain(pixels))


def _attention_classifier(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForImageClassification

    bias = {"use_relative_position_bias": True}
    fields: dict[str, Any] = {"beit": bias, "data2vec-vision": bias}.get(kind, {})
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    network = AutoModelForImageClassification.from_config(
        AutoConfig.for_model(kind, image_size=32, patch_size=8, num_labels=3, **size, **fields)
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)  # a bias starts as zero
    return network


def _kinds_attended_in(network: Any, monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """Of the queries, in a step with bf16."""
    kinds: list[torch.dtype] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def noting(query: Tensor, *arguments: Any, **options: Any) -> Tensor:
        output: Tensor = fused(query, *arguments, **options)
        kinds.append(output.dtype)
        return output

    with monkeypatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
        network(pixel_values=torch.rand(2, 3, 32, 32)).logits.float().sum().backward()
    assert len(kinds) == 2  # layers
    return set(kinds)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "beit"])
def test_attention_that_a_cpu_is_slow_at_stays_in_float32(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It gives the same answers, also with a bias for positions, and leaves no trace in the model's config."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    plain, network = _attention_classifier(kind).eval(), _attention_classifier(kind).eval()
    assert _kinds_attended_in(plain, monkeypatch) == {torch.bfloat16}
    keep_slow_in_float32(network)

    assert _kinds_attended_in(network, monkeypatch) == {torch.float32}

    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(network(pixel_values=pixels).logits, plain(pixel_values=pixels).logits)
    saved = [folder / "config.json" for folder in (tmp_path / "plain", tmp_path / "network")]
    plain.save_pretrained(saved[0].parent)
    network.save_pretrained(saved[1].parent)
    assert saved[0].read_bytes() == saved[1].read_bytes()


def test_a_mask_in_bf16_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer computes in a step with bf16; PyTorch refuses a mask of another type than the queries'."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    network = _attention_classifier("beit")
    keep_slow_in_float32(network)
    for module in network.modules():
        if type(module).__name__ == "BeitRelativePositionBias":
            module.register_forward_hook(lambda *call: call[-1].bfloat16())

    assert _kinds_attended_in(network, monkeypatch) == {torch.float32}


def test_a_model_with_an_attention_of_its_own_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    network = _attention_classifier("data2vec-vision")
    keep_slow_in_float32(network)

    assert _kinds_attended_in(network, monkeypatch) == {torch.bfloat16}
    assert not caplog.records


def test_attention_is_in_bf16_where_the_cpu_multiplies_whole_blocks_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """AMX."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": True})
    network = _attention_classifier("vit")
    keep_slow_in_float32(network)

    assert _kinds_attended_in(network, monkeypatch) == {torch.bfloat16}


_PAGES = """
import resource, sys, torch
from classifier.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
def touch():
    torch.ones(20 << 20)  # 80 MiB: a large layer's output
for _ in range(20):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_the_memory_of_a_step_is_used_again() -> None:
    """Else the system clears every page of every large tensor anew, in each step."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        keep_freed_memory()  # does nothing
        pytest.skip("this C library has no mallopt")

    faults = {
        how: int(
            subprocess.run([sys.executable, "-c", _PAGES, how], check=True, capture_output=True, timeout=60).stdout
        )
        for how in ("kept", "given back")
    }

    assert faults["kept"] < faults["given back"] / 4


def test_the_memory_of_a_step_is_used_again_where_training_runs(ray_once: None) -> None:
    """Training runs in a thread of a Ray worker, and glibc gives the memory of such threads back whatever it is told."""
    import ray

    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("this C library has no mallopt")

    @ray.remote(num_cpus=0.01)
    def faults_in_a_thread() -> list[int]:
        counted: list[int] = []

        def steps() -> None:
            keep_freed_memory()
            for count in (10, 5, 5, 5, 5):
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                for _ in range(count):
                    torch.ones(20 << 20)  # 80 MiB: a large layer's output
                counted.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

        thread = threading.Thread(target=steps)
        thread.start()
        thread.join()
        return counted[1:]

    # The least of them: another thread's small allocation may split what a step left free, and one step takes new memory.
    pages_of_five_steps = 5 * (80 << 20) // resource.getpagesize()
    assert min(ray.get(faults_in_a_thread.remote(), timeout=60)) < pages_of_five_steps / 20
