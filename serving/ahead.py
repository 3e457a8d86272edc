"""What the processes that answer import, by the model: done once for all of them, see `cluster.forkserver`."""

from classifier.model_folder import Manifest
from classifier.predict import BackendName, Device, uses_onnx

# ONNX Runtime is nowhere here: it starts a thread, and is imported in no time.
PYTORCH = ("classifier.torch_backend", "classifier.network", "transformers.modeling_utils")
ENDPOINT = (
    "ray.serve._private.controller",
    "ray.serve._private.replica",
    "serving.replica",
    "serving.ingress",
)
FOLDER_JOB = ("ray.data", "serving.folder")


def backend_modules(manifest: Manifest, *, device: Device = "auto", backend: BackendName = "auto") -> tuple[str, ...]:
    """What computes the answers of a model, by the settings that `Predictor.load` gets."""
    return () if uses_onnx(manifest, backend=backend, on_gpu=device == "gpu") else PYTORCH
