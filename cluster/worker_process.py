"""What Ray starts as a worker where a fork server runs: it has a copy made of that process, and stays while the copy lives.

Takes as little time as a Python can: see `forkserver`. On a Ray of one's own it is run by its path; on a cluster that runs
already the worker's Python finds `sitecustomize`, which comes here.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence

SOCKET, SCRIPT = "CLASSIFIER_WORKER_SOCKET", "CLASSIFIER_WORKER_SCRIPT"  # environment variables
COPIED = b"+"
# The server may still import. Ray gives a worker up that has not called within 60 s.
_COPIED_WITHIN_S = 20.0


def main() -> None:
    """Be a worker, as a copy or else as Ray would have started it."""
    script = os.environ[SCRIPT]
    if not is_copied(script, sys.argv[1:]):
        os.execv(sys.executable, [sys.executable, script, *sys.argv[1:]])  # noqa: S606


def is_copied(script: str, arguments: Sequence[str]) -> bool:
    """Have a copy made that runs a script; returns when it is over, or when there is none.

    Args:
        script: the program of Ray's workers.
        arguments: what follows it on the command line.
    """
    inheritance = {
        "script": script,
        "arguments": arguments,
        "prefix": os.path.realpath(sys.prefix),
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109  pathlib is an import
        "blocked_signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(_COPIED_WITHIN_S)
            connection.connect(os.environ[SOCKET])
            socket.send_fds(connection, [b" "], [0, 1, 2])
            connection.sendall(json.dumps(inheritance).encode())
            connection.shutdown(socket.SHUT_WR)
            if connection.recv(1) != COPIED:
                return False
            connection.settimeout(None)
            connection.recv(1)  # nothing is ever sent: the copy has ended
        except OSError:
            return False
        return True


if __name__ == "__main__":
    main()
