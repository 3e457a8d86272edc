"""What a cluster needs before Ray starts: `python -m cluster.prepare TOKEN FOLDER...`.

`docker compose up` runs it first, in a container of its own that all others wait for.
"""

import os
import secrets
import sys
from pathlib import Path

from classifier.errors import ClusterError, ConfigError, OutputError
from cluster.terminal import EXIT_OK, Terminal, run_command

_TOKEN_BYTES = 32
_ABOUT = """
python -m cluster.prepare TOKEN [FOLDER ...]

Writes a new random token into the file TOKEN, unless there is one, and makes sure that each FOLDER can be written.
"""


def make_token(file: Path) -> bool:
    """Write a new random token that only its owner can read, unless there is one.

    Returns:
        whether it was written now. A token that is there is kept: nodes that run already hold it.

    Raises:
        ClusterError: there is an empty file, or the folder cannot be written.
    """
    try:
        # O_EXCL: of two that start at once, one writes, and the other finds it.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if not file.read_text().strip():
            raise ClusterError(f"{file} is empty; remove it, and a new token is made") from None
        return False
    except OSError as error:
        raise ClusterError(f"{file} cannot be written ({error.strerror}): the cluster would have no token") from error
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(_TOKEN_BYTES))
    return True


def check_writable(folder: Path) -> None:
    """Make sure that a mounted folder can be written by the user that all containers run as.

    Raises:
        OutputError: it cannot; says whose it is, and what to set.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder} is not a folder; mount one there")
    if os.access(folder, os.W_OK | os.X_OK):
        return
    owner = folder.stat()
    raise OutputError(
        f"{folder} belongs to user {owner.st_uid}, the containers run as user {os.getuid()} and cannot write it; "
        f"put APP_UID={owner.st_uid} and APP_GID={owner.st_gid} into .env beside docker-compose.yml"
        if owner.st_uid != 0
        else f"{folder} belongs to root, the containers run as user {os.getuid()} and cannot write it; on the host: "
        f"sudo chown -R {os.getuid()}:{os.getgid()} {folder.name}"
    )


def prepare(arguments: list[str], terminal: Terminal) -> int:
    """Make the token (first argument), then check every folder (the others)."""
    if {"-h", "--help"} & set(arguments):
        terminal.say(_ABOUT.strip())
        return EXIT_OK
    if not arguments or any(argument.startswith("-") for argument in arguments):
        raise ConfigError("expected the token's file, then folders; --help says what is done with them")
    token, *folders = (Path(argument) for argument in arguments)
    terminal.say(f"{token}: {'made' if make_token(token) else 'kept'}")
    for folder in folders:
        check_writable(folder)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(prepare, sys.argv[1:]))
