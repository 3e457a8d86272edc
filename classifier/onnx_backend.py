"""Probabilities by ONNX Runtime, on a CPU. Needs neither torch nor transformers."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from classifier.errors import BadModelFolder

# Pictures at a time: what a layer writes of more no longer lies in a core's cache when the next one reads it.
_CHUNK = 8


class OnnxBackend:
    """A session over the bytes of a `model.onnx`; safe for concurrent calls.

    Args:
        model: the file's content, as `onnx_export` writes it: uint8 `pixels` in, float32 `probabilities` out.
        threads: how many compute; None: one for each core that this process may use.

    Raises:
        BadModelFolder: it is no such model, or it refers to other files.
    """

    name = "onnx"
    device = "cpu"

    def __init__(self, model: bytes, *, threads: int | None = None) -> None:
        import onnxruntime

        _check_self_contained(model)
        options = onnxruntime.SessionOptions()
        # ONNX Runtime's own default counts the host's cores, not a container's
        options.intra_op_num_threads = threads or _cores()
        options.inter_op_num_threads = 1
        # Threads that wait for the next batch must not take the cores that decode it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # its errors are raised as well
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has classes of its own for every fault, without a common one
            raise BadModelFolder(f"model.onnx cannot be loaded: {' '.join(str(error).split())[:300]}") from error

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:  # uint8 [B,3,H,W] -> float32 [B,C]
        """The probability of every class for every picture."""
        chunks = (pixels[start : start + _CHUNK] for start in range(0, max(1, len(pixels)), _CHUNK))
        return np.concatenate([self._session.run(["probabilities"], {"pixels": chunk})[0] for chunk in chunks])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _check_self_contained(model: bytes) -> None:
    """A tensor may be kept in another file, whose path the model states: it would be read, wherever it lies."""
    import onnx

    try:
        parsed = onnx.load_model_from_string(model)
    except Exception as error:  # protobuf's DecodeError, and ValueError
        raise BadModelFolder(f"model.onnx is not an ONNX model: {' '.join(str(error).split())[:200]}") from error
    nodes = [node for function in parsed.functions for node in function.node]
    for tensor in (*_tensors_of_graph(parsed.graph), *_tensors_of_nodes(nodes)):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise BadModelFolder(f"model.onnx keeps {tensor.name} in another file; expected one that stands alone")


def _tensors_of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors_of_graph(graph)
