"""What the processes that answer import, by the model: done once for all of them, see `cluster.forkserver`."""

from classifier.model_folder import Manifest
from classifier.predict import BackendName, Device, prefers_onnx


def modules(manifest: Manifest, *, device: Device = "auto", backend: BackendName = "auto") -> list[str]:
    """Names of modules. ONNX Runtime is none of them: it starts a thread, and is imported in no time."""
    on_onnx = backend == "onnx" or (backend == "auto" and device != "gpu" and prefers_onnx(manifest))
    return [] if on_onnx else ["classifier.torch_backend", "classifier.network", "transformers.modeling_utils"]
