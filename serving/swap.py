"""A new model without a gap: `python -m serving.swap model=NEW [app=default] [timeout_s=180]`.

The new model is loaded and checked here first. Then Serve starts its replicas beside the old ones; each loads it and
answers a picture; only then do requests go to them, and the old ones finish what they have and stop. A model that fails
on the way leaves the old one serving. The endpoint keeps its settings and its key.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from classifier.errors import ClusterError
from cluster.configuration import Section, validate
from cluster.session import address_from_environment, ray_session
from cluster.terminal import EXIT_OK, Terminal, run_command
from serving import rollout
from serving.launch import help_of, read_pairs

if TYPE_CHECKING:
    from serving.replica import Settings


class SwapArgs(Section):
    """What `serving.swap` understands."""

    model: str = Field(min_length=1, description="A model folder, or `EXAMS`, or `EXAMS/category`.")
    models_dir: Path = Field(Path("models"), description="Where `model=EXAMS` looks for models.")
    app: str = Field("default", description="The Serve application's name.")
    timeout_s: float = Field(180, gt=0, description="How long the new model may take until it answers.")


def main(arguments: list[str], terminal: Terminal) -> int:
    """Swap the model of a running endpoint."""
    if {"-h", "--help"} & set(arguments):
        terminal.say(help_of(SwapArgs, command="python -m serving.swap model=... [key=value ...]"))
        return EXIT_OK
    args = validate(SwapArgs, read_pairs(arguments))
    with ray_session(address=address_from_environment() or "auto", admission_cpus=None):
        start = time.monotonic()
        old, new = swap(args.model, models_dir=args.models_dir, app_name=args.app, timeout_s=args.timeout_s)
        if old.digest == new.digest:
            terminal.say(f"{new.args.model} is what {args.app} serves already ({new.digest[:19]}).")
        else:
            terminal.say(f"{args.app} serves {new.args.model} ({new.digest[:19]})")
            terminal.say(f"  before: {old.args.model} ({old.digest[:19]}); it took {time.monotonic() - start:.1f} s")
    return EXIT_OK


def swap(model: str, *, models_dir: Path, app_name: str, timeout_s: float) -> tuple["Settings", "Settings"]:
    """Replace the model of a running application, and wait until the new one answers.

    Returns:
        the settings before and after.

    Raises:
        BadModelFolder: the new model cannot be used; nothing was touched.
        ClusterError: there is no such application, or the new model did not come up; the old one serves.
    """
    from serving import app

    old = _settings(app_name, timeout_s=30)
    wanted = old.args.model_copy(update={"model": model, "models_dir": models_dir})
    new = app.settle(wanted, key_digest=old.key_digest)
    if new.digest == old.digest:
        return old, new
    deployed = _details()["applications"][app_name]
    before = _running(app_name)
    try:
        _replace(deployed, app_name, new)
        # The old ones may be stopping for a while yet: they finish what they have, and ingresses must hear that they go.
        rollout.wait_until(lambda: _are_new(_running(app_name), before), name=app_name, timeout_s=timeout_s)
    except ClusterError as error:
        _replace(deployed, app_name, old)
        raise ClusterError(f"{model} did not come up, {old.args.model} goes on serving: {error}") from error
    return old, new


def _settings(app_name: str, *, timeout_s: float) -> "Settings":
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        handle = serve.get_app_handle(app_name)
    except RayServeException as error:
        running = ", ".join(serve.status().applications) or "none"
        raise ClusterError(f"app={app_name}: no such application here; running: {running}") from error
    settings: Settings = handle.get_settings.remote().result(timeout_s=timeout_s)
    return settings


def _details() -> dict[str, Any]:
    from ray.serve.context import _get_global_client

    details: dict[str, Any] = _get_global_client().get_serve_details()
    return details


def _replace(deployed: dict[str, Any], app_name: str, settings: "Settings") -> None:
    """Tell Serve what is wanted now, in the way in which the application was deployed."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from serving import app

    if deployed.get("deployed_app_config") is None:  # serve run, make serve
        rollout.deploy(app.assemble(settings), name=app_name, route_prefix=deployed["route_prefix"])
        return
    configs = []  # serve deploy: its file names all applications, and what it leaves out is deleted
    for name, details in _details()["applications"].items():
        config = details.get("deployed_app_config")
        if config is not None:
            if name == app_name:
                config = {**config, "args": {**config.get("args", {}), "model": settings.args.model}}
            configs.append(config)
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": configs}), _blocking=False)


def _running(app_name: str) -> set[str]:
    """The replicas that get requests."""
    deployments = _details()["applications"][app_name]["deployments"].values()
    replicas = [replica for deployment in deployments for replica in deployment["replicas"]]
    return {replica["replica_id"] for replica in replicas if replica["state"] == "RUNNING"}


def _are_new(running: set[str], before: set[str]) -> bool:
    return bool(running) and not running & before


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
