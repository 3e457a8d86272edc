"""cluster/launcher: `ray up` understands them, and none opens anything to the world."""

from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from tests.cluster.deployment import LAUNCHER, Plain, check_launcher, load


def _aws() -> Plain:
    return load(next(file for file in LAUNCHER if file.name == "aws.yaml"))


@pytest.mark.parametrize("file", LAUNCHER, ids=lambda file: file.name)
def test_ray_up_understands_it(file: Path) -> None:
    """Ray's own parser and schema, with the provider's defaults filled in."""
    prepared = check_launcher(load(file))
    assert prepared["head_node_type"] in prepared["available_node_types"]


def _misspelt(plain: Plain) -> None:
    plain["docker"]["images"] = plain["docker"].pop("image")


def _no_such_head(plain: Plain) -> None:
    plain["head_node_type"] = "heads"


def _too_few(plain: Plain) -> None:
    plain["max_workers"] = 1


def _text_for_a_number(plain: Plain) -> None:
    plain["idle_timeout_minutes"] = "ten"


@pytest.mark.parametrize("damage", [_misspelt, _no_such_head, _too_few, _text_for_a_number])
def test_a_damaged_file_is_refused(damage: Callable[[Plain], None]) -> None:
    """The check is able to fail."""
    damaged = _aws()
    damage(damaged)
    with pytest.raises((jsonschema.ValidationError, ValueError, AssertionError)):
        check_launcher(damaged)


@pytest.mark.parametrize("file", LAUNCHER, ids=lambda file: file.name)
def test_every_node_wants_the_token_and_gets_it_from_your_machine(file: Path) -> None:
    """In every container's environment, and from a file outside the repository."""
    plain = load(file)
    options = plain["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options
    where = next(option.rpartition("=")[2] for option in options if "RAY_AUTH_TOKEN_PATH" in option)
    assert plain["file_mounts"][where] == "~/.ray/auth_token"
    assert not any("--publish" in option or "RAY_AUTH_TOKEN=" in option for option in options)


@pytest.mark.parametrize("file", LAUNCHER, ids=lambda file: file.name)
def test_the_dashboard_is_reached_through_ssh(file: Path) -> None:
    """The nodes' containers share the host's network: 0.0.0.0 would be the machine's own addresses."""
    plain = load(file)
    start = " ".join(plain["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "--port=6379" in start
    assert "--address=$RAY_HEAD_IP:6379" in " ".join(plain["worker_start_ray_commands"])


def test_on_aws_ssh_is_open_to_one_address() -> None:
    """Left out, Ray opens it to 0.0.0.0/0."""
    rules = _aws()["provider"]["security_group"]["IpPermissions"]
    assert [rule["FromPort"] for rule in rules] == [22]
    assert all(block["CidrIp"].endswith("/32") for rule in rules for block in rule["IpRanges"])
