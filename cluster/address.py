"""Where a Ray cluster is, and whether it lets us in: asked before joining, because Ray itself retries for 20 s."""

import os
import sys
from pathlib import Path

from classifier.errors import ClusterError

_ANSWER_WITHIN_S = 5.0
_TOKEN_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = Path(
    "~/.ray/auth_token"
)  # where Ray leaves the token of a cluster that a command started on this machine


def use_token() -> None:
    """Turn token authentication on when there is a token, here or in Ray's own file: it wants RAY_AUTH_MODE=token too.

    Raises:
        ClusterError: RAY_AUTH_TOKEN_PATH names a file that cannot be read, or is empty.
    """
    file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if file is not None and "RAY_AUTH_TOKEN" not in os.environ:
        try:
            empty = not Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ClusterError(f"RAY_AUTH_TOKEN_PATH={file}: the token cannot be read ({error})") from error
        if empty:
            raise ClusterError(f"RAY_AUTH_TOKEN_PATH={file}: the file is empty; it must hold the cluster's token")
    if "RAY_AUTH_MODE" not in os.environ and _token_source() is not None:
        os.environ["RAY_AUTH_MODE"] = "token"
        if "ray" in sys.modules:  # it read its settings when it was imported
            from ray._raylet import Config  # type: ignore[attr-defined]

            Config.initialize("")


def _token_source() -> str | None:
    """Where Ray takes the token from; None where there is none, or where the user has turned tokens off."""
    named = next((name for name in _TOKEN_SOURCES if name in os.environ), None)
    if named is None and os.environ.get("RAY_AUTH_MODE", "token") == "token" and _TOKEN_FILE.expanduser().is_file():
        return str(_TOKEN_FILE)
    return named


def find_cluster(address: str) -> str:
    """Find a running cluster, and ask it whether it takes our token.

    Args:
        address: `host:port` of the cluster's head, or `auto` for one on this machine.

    Returns:
        `host:port`.

    Raises:
        ClusterError: it is no such address, nothing answers there, something else than Ray does, or it turns us away.
    """
    if address.startswith("ray://"):
        raise ClusterError(
            f"RAY_ADDRESS={address}: the Ray client cannot run training; submit the command to the cluster instead: "
            "ray job submit --working-dir . -- python -m training.run ..."
        )
    found = _on_this_machine() if address == "auto" else _host_and_port(address)
    _ask(found, f"RAY_ADDRESS={address}" if found == address else f"RAY_ADDRESS={address} ({found})")
    return found


def _host_and_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host.strip("[]") or "/" in host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ClusterError(f"RAY_ADDRESS={address}: expected host:port, for example 10.0.0.1:6379, or auto")
    return address


def _on_this_machine() -> str:
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError as error:
        raise ClusterError(
            "RAY_ADDRESS=auto: no Ray runs on this machine; start one (ray start --head), or unset RAY_ADDRESS"
        ) from error


def _ask(address: str, shown: str) -> None:
    """One call, without retries, of the service that every Ray process calls first."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    channel = init_grpc_channel(address)
    try:
        NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=_ANSWER_WITHIN_S)
    except grpc.RpcError as error:
        raise ClusterError(f"{shown}: {_reason(error)}") from error
    finally:
        channel.close()


def _reason(error: object) -> str:
    import grpc

    code, details = error.code(), error.details() or ""  # type: ignore[attr-defined]
    if code == grpc.StatusCode.UNAUTHENTICATED:
        sent = _token_source()
        return (
            f"the cluster does not take the token in {sent}; it must be the one that the cluster was started with"
            if sent
            else "the cluster wants a token; set RAY_AUTH_TOKEN_PATH to the file that holds it (or RAY_AUTH_TOKEN)"
        )
    if code == grpc.StatusCode.UNIMPLEMENTED or "HTTP" in details:
        return "what answers there is not a Ray head; its port is 6379 unless it was started with another (--port)"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"nothing answers within {_ANSWER_WITHIN_S:g} s; is it up, and does a firewall let its ports through?"
    return f"nothing answers there ({details.rpartition(': ')[2]}); start the cluster, or unset RAY_ADDRESS"
