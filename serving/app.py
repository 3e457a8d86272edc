"""The Ray Serve application: `serve run serving.app:deploy model=models/EXAMS/default/DATE/TIME`.

bytes -> `decode` -> `to_pixels` -> batched with its neighbours -> `Predictor` -> top 3.
"""

# No `from __future__ import annotations` here: Serve finds DeployArgs by its class, and would hand over a plain
# dictionary, unchecked, where the annotation is text.
import logging
import os
from pathlib import Path

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from classifier.errors import ClusterError, ConfigError
from classifier.model_folder import find_model, load_model
from classifier.predict import Predictor, gpu_is_here
from serving.key import exposure_warning, read_key_digest
from serving.options import DeployArgs
from serving.replica import Replica, Settings

_log = logging.getLogger("ray.serve")

DEPLOYMENT = "Classifier"


def deploy(args: DeployArgs) -> Application:
    """Build the application; the model is loaded and checked here already, before anything is started or replaced.

    Raises:
        BadModelFolder: there is no such model, or it cannot be used.
        ClusterError: `device` is gpu, and there is none.
        ConfigError: the API key cannot be read.
    """
    key_digest = read_key_digest(os.environ, args.api_key_file)
    warning = exposure_warning(_host(), has_key=key_digest is not None)
    if warning:
        _log.warning("Warning: %s", warning)
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") != "1":
        # Serve has read its environment by the time it calls us: too late to switch it on from here.
        _log.warning(
            "The faster ingress (HAProxy) is off; `make serve MODEL=%s` serves the same with it on", args.model
        )
    return build(args, key_digest=key_digest)


def build(args: DeployArgs, *, key_digest: str | None) -> Application:
    """As `deploy`, with a key that was read elsewhere."""
    return assemble(settle(args, key_digest=key_digest))


def settle(args: DeployArgs, *, key_digest: str | None) -> Settings:
    """Find the model, load and check it, and settle what was left open.

    Raises:
        BadModelFolder, ClusterError: as `deploy`.
        ConfigError: `backend` is onnx and `device` is gpu.
    """
    folder = find_model(args.model, models_dir=args.models_dir.expanduser())
    settled = args.model_copy(update={"model": str(folder), "device": _device(args)})
    return Settings(args=settled, digest=_checked_digest(folder, settled), key_digest=key_digest)


def assemble(settings: Settings) -> Application:
    """The application as Serve runs it."""
    args = settings.args
    resources = {"num_cpus": args.cpus_per_replica}
    if args.device == "gpu":
        resources["num_gpus"] = args.gpus_per_replica
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=DEPLOYMENT,
        ray_actor_options=resources,
        autoscaling_config=AutoscalingConfig(
            min_replicas=args.min_replicas,
            max_replicas=args.max_replicas,
            target_ongoing_requests=args.target_ongoing_requests,
            upscale_delay_s=args.upscale_delay_s,
            downscale_delay_s=args.downscale_delay_s,
            metrics_interval_s=min(10.0, args.load_window_s / 2),
            look_back_period_s=args.load_window_s,
        ),
        # The replica itself refuses what is above max_queue, with a sentence; Serve's own limits stand behind it.
        max_ongoing_requests=args.max_queue + 16,
        max_queued_requests=args.max_queue + 64,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        # A new model's replicas are started, and have answered a picture, before the old ones are stopped.
        max_surge_percent=100,
        rolling_update_percentage=1.0,
        logging_config=LoggingConfig(enable_access_log=args.access_log),
    )
    return deployment.bind(settings)


def _checked_digest(folder: Path, args: DeployArgs) -> str:
    """The digest of a model that was loaded as its replicas will load it."""
    if args.device == "gpu":  # which may lie in another machine than this process
        return load_model(folder).manifest.digest
    return Predictor.load(folder, device=args.device, backend=args.backend).manifest.digest


def _device(args: DeployArgs) -> str:
    if args.device == "cpu" or (args.device == "auto" and args.backend == "onnx"):
        return "cpu"
    if args.backend == "onnx":
        raise ConfigError("backend=onnx runs on CPUs only; set device=cpu, or backend=torch")
    has_gpu = _has_gpu()
    if args.device == "gpu" and not has_gpu:
        raise ClusterError("device=gpu, but there is no GPU here; set device=cpu or device=auto")
    return "gpu" if has_gpu else "cpu"


def _has_gpu() -> bool:
    """In the cluster where there is one already (`serve deploy`), else in this machine (`serve run`)."""
    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU", 0) >= 1)
    return gpu_is_here()


def _host() -> str:
    """The interface that Serve listens on."""
    from ray.serve.context import _get_global_client
    from ray.serve.exceptions import RayServeException

    if ray.is_initialized():
        try:
            return str(_get_global_client().http_config.host)
        except RayServeException:
            pass
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") == "1":
        return "0.0.0.0"  # noqa: S104 - what Ray Serve does in this mode, whatever else is set
    return os.environ.get("RAY_SERVE_DEFAULT_HTTP_HOST") or "127.0.0.1"
