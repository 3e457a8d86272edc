"""An application on its way: what Serve is told, and a wait that has a limit and says what it waits for."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from classifier.errors import ClusterError

if TYPE_CHECKING:
    from ray.serve import Application

_POLL_S = 0.25
_SAY_EVERY_S = 30.0


def deploy(application: "Application", *, name: str, route_prefix: str) -> None:
    """Tell Serve what is wanted now; `wait_until` waits until it is so.

    Raises:
        ClusterError: Serve takes no requests.
    """
    from ray import serve

    target = serve.RunTarget(application, name=name, route_prefix=route_prefix)
    try:
        serve.run_many([target], wait_for_applications_running=False)
    except (RuntimeError, TimeoutError) as error:
        raise ClusterError(f"Ray Serve did not come up: {' '.join(str(error).split())[:400]}") from error


def is_up(name: str) -> bool:
    """Whether an application has as many replicas as it asks for at least."""
    from ray import serve

    return bool(serve.status().applications[name].status == "RUNNING")


def wait_until(
    reached: Callable[[], bool], *, name: str, timeout_s: float, say: Callable[[str], None] | None = None
) -> None:
    """Wait for something that Serve brings an application to.

    Args:
        reached: whether it has come to that.
        name: the application.
        timeout_s: how long that may take.
        say: is told now and then what Serve is waiting for.

    Raises:
        ClusterError: it fails, or takes longer; with Serve's reason.
    """
    from ray import serve

    began = time.monotonic()
    next_word = began + _SAY_EVERY_S
    while not reached():
        status = serve.status().applications[name]
        messages = [deployment.message for deployment in status.deployments.values() if deployment.message]
        message = " ".join(" ".join([status.message, *messages]).split())
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ClusterError(message[-400:])
        now = time.monotonic()
        if now > began + timeout_s:
            why = message[-300:] or "no reason given"
            raise ClusterError(f"not after {timeout_s:g} s ({why}); is there room for it?")
        if say is not None and now > next_word:
            say(f"Waiting for {now - began:.0f} s: {message[-300:] or 'its replicas are starting'}")
            next_word = now + _SAY_EVERY_S
        time.sleep(_POLL_S)
