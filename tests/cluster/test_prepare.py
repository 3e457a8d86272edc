"""What `docker compose up` does first: the token is made once, and folders that cannot be written are named."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from classifier.errors import ClusterError, OutputError
from cluster.prepare import check_writable, make_token, prepare
from cluster.terminal import run_command
from tests.cluster.deployment import ROOT

# Root loads the program: where it lies, user 1000 may not look.
_AS_USER_1000 = """
import os, sys
from cluster.prepare import prepare
from cluster.terminal import run_command
os.setgroups([]), os.setgid(1000), os.setuid(1000)
sys.exit(run_command(prepare, sys.argv[1:]))
"""


def test_the_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    """32 random bytes; a second start keeps them, since nodes that run already hold them."""
    file = tmp_path / "ray_token"
    assert make_token(file) is True
    token = file.read_text()
    assert len(bytes.fromhex(token)) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert make_token(file) is False
    assert file.read_text() == token
    other = tmp_path / "other"
    make_token(other)
    assert other.read_text() != token


def test_an_empty_token_is_not_taken_for_one(tmp_path: Path) -> None:
    """A start that was cut off may leave one."""
    file = tmp_path / "ray_token"
    file.touch()
    with pytest.raises(ClusterError, match="is empty; remove it"):
        make_token(file)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """For the token, and for what is mounted."""
    with pytest.raises(ClusterError, match="cannot be written"):
        make_token(tmp_path / "absent" / "ray_token")
    with pytest.raises(OutputError, match="is not a folder; mount one there"):
        check_writable(tmp_path / "absent")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["--help"], 0, "python -m cluster.prepare TOKEN [FOLDER ...]"),
        ([], 2, "Error: expected the token's file, then folders"),
        (["--token=x"], 2, "Error: expected the token's file, then folders"),
    ],
)
def test_asking_for_help_and_mistyping_write_no_token(
    arguments: list[str],
    exit_code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """`--help` is no name of a file."""
    monkeypatch.chdir(tmp_path)

    assert run_command(prepare, arguments) == exit_code

    assert said in capfd.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("owner", "said"), [(4711, "APP_UID=4711 and APP_GID=4711"), (0, "sudo chown -R 1000:1000 ")])
def test_somebody_elses_folder_is_refused_with_what_to_do(owner: int, said: str) -> None:
    """The command that compose starts, as the user that the containers run as."""
    if os.getuid() != 0:
        pytest.skip("needs root to give a folder to somebody else")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        models, secrets = Path(name) / "models", Path(name) / "secrets"
        for folder, mode in ((models, 0o755), (secrets, 0o1777)):
            folder.mkdir()
            folder.chmod(mode)
        os.chown(models, owner, owner)
        done = subprocess.run(
            [sys.executable, "-c", _AS_USER_1000, secrets / "ray_token", models],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (2, "")
    assert f"{secrets / 'ray_token'}: made" in done.stdout
    assert f"Error: {models} belongs to" in done.stdout
    assert said in done.stdout
