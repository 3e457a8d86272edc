"""What Ray starts as a worker where a fork server runs: it has a copy made of that process, and stays while the copy lives.

It is run by its path, and takes as little time as a Python can: see `forkserver`.
"""

import json
import os
import signal
import socket
import sys

SOCKET, SCRIPT = "CLASSIFIER_WORKER_SOCKET", "CLASSIFIER_WORKER_SCRIPT"  # environment variables
COPIED = b"+"
# The server may still import. Ray gives a worker up that has not called within 60 s.
_COPIED_WITHIN_S = 20.0


def main() -> None:
    """Be a worker, as a copy or else as Ray would have started it."""
    if not _is_copied():
        script = os.environ[SCRIPT]
        os.execv(sys.executable, [sys.executable, script, *sys.argv[1:]])  # noqa: S606


def _is_copied() -> bool:
    """Have a copy made; returns when it is over, or when there is none."""
    inheritance = {
        "arguments": sys.argv[1:],
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
