"""The data folder: one daemon at a time, and all of it its own user's."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kmgr.cli import operate  # noqa: F401 - loaded while this process may read it
from kmgr.cli.app import command_line
from kmgr.control import socket_path
from kmgr.daemon.folder import FOLDERS, locked, prepare
from kmgr.errors import ConfigError, Refused
from kmgr.grid import identity


def test_a_second_daemon_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    prepare(tmp_path)
    with locked(tmp_path), pytest.raises(ConfigError, match=r"process \d+"), locked(tmp_path):
        pass


def test_the_folder_is_free_again_afterwards(tmp_path: Path) -> None:
    prepare(tmp_path)
    for _ in range(2):
        with locked(tmp_path):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to somebody else")
def test_root_runs_no_daemon_in_another_users_folder_and_leaves_nothing_there(tmp_path: Path) -> None:
    home = tmp_path / "kmgr"
    home.mkdir()
    os.chown(home, 65534, 65534)
    for words in (["run"], ["witness", "run"]):
        told = subprocess.run(
            [sys.executable, "-m", "kmgr", *words, "--data", home],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert told.returncode == 78, told.stderr
        assert "belongs to nobody" in told.stderr and "type the command as nobody" in told.stderr
    assert [*home.iterdir()] == []


def test_preparing_twice_changes_nothing(tmp_path: Path) -> None:
    prepare(tmp_path)
    prepare(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(FOLDERS)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigError, match="data folder"):
        prepare(tmp_path / "data")


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
NOBODY = 65534
ROOT = Path(__file__).parents[2]


@pytest.fixture
def foreign() -> Iterator[Path]:
    """A data folder that belongs to the user as whom the daemon runs, as on the appliance."""
    folder = Path(tempfile.mkdtemp(prefix="kmgr-foreign-"))
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


@AS_ROOT
def test_what_root_types_leaves_files_that_the_daemon_can_use(foreign: Path, tmp_path: Path) -> None:
    password = tmp_path / "password"  # where only root may read
    password.write_text("long enough")
    password.chmod(0o600)
    words = ["init", "--data", str(foreign), "--grid", "g", "--name", "a", "--password-file", str(password)]
    subprocess.run([sys.executable, "-m", "kmgr", *words], cwd=ROOT, capture_output=True, timeout=60, check=True)
    made = {path.relative_to(foreign) for path in foreign.rglob("*")}
    assert {Path("kmgr.toml"), Path("identity/identity.json"), Path("raft")} <= made
    assert {path.stat().st_uid for path in foreign.rglob("*")} == {NOBODY}


@AS_ROOT
def test_who_may_not_use_the_folder_is_told_whom_to_be(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    os.seteuid(NOBODY)
    try:
        for use in (prepare, identity.load):
            with pytest.raises(ConfigError, match="type the command as root"):
                use(tmp_path / "data")
    finally:
        os.seteuid(0)


@AS_ROOT
def test_who_asks_a_daemon_of_somebody_else_is_told_whom_to_be(foreign: Path) -> None:
    os.chown(foreign, 0, 0)
    foreign.chmod(0o711)
    prepare(foreign)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(socket_path(foreign)))
        socket_path(foreign).chmod(0o600)
        os.setresuid(NOBODY, NOBODY, 0)
        try:
            done = CliRunner().invoke(command_line(["status"]), ["status", "--data", str(foreign)])
        finally:
            os.setresuid(0, 0, 0)
    assert isinstance(done.exception, Refused), done.output
    assert "run this command as root" in done.exception.message
