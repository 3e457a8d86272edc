"""The API key: only its digest leaves the process that reads it."""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from classifier.errors import ConfigError

VARIABLE = "SERVE_API_KEY"


def read_key_digest(environment: Mapping[str, str], file: Path | None) -> str | None:
    """The digest of the key that requests must carry, or None when none is asked for.

    Raises:
        ConfigError: the file cannot be read, or the key is empty, too short to be one, or cannot be sent in a header.
    """
    if file is not None:
        try:
            key = file.expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file={file}: cannot be read: {error}") from error
        return _digest(_checked(key, f"api_key_file={file}"))
    if VARIABLE not in environment:
        return None
    return _digest(_checked(environment[VARIABLE].strip(), VARIABLE))


def is_right(headers: Mapping[str, str], digest: str) -> bool:
    """Whether a request carries the key, as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    carried = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return hmac.compare_digest(_digest(carried), digest)


def is_loopback(host: str | None) -> bool:
    """Whether an address can be reached from this machine only."""
    return host is not None and (host in ("localhost", "::1") or host.startswith("127."))


def exposure_warning(host: str | None, *, has_key: bool) -> str | None:
    """What to tell a user who lets other machines in without a key."""
    if has_key or is_loopback(host):
        return None
    return (
        f"the endpoint listens on {host or 'every interface'} and asks for no key: whoever reaches this machine can "
        f"use it; set {VARIABLE}, or api_key_file=FILE"
    )


def _checked(key: str, where: str) -> str:
    if len(key) < 8:
        raise ConfigError(f"{where}: the key has {len(key)} characters; expected at least 8")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{where}: the key has characters that no HTTP header carries as they are; expected ASCII only"
        )
    return key


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
