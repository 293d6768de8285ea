"""The data folder: one daemon at a time."""

from pathlib import Path

import pytest

from kmgr.daemon.folder import FOLDERS, locked, prepare
from kmgr.errors import ConfigError


def test_a_second_daemon_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    prepare(tmp_path)
    with locked(tmp_path), pytest.raises(ConfigError, match=r"process \d+"), locked(tmp_path):
        pass


def test_the_folder_is_free_again_afterwards(tmp_path: Path) -> None:
    prepare(tmp_path)
    for _ in range(2):
        with locked(tmp_path):
            pass


def test_preparing_twice_changes_nothing(tmp_path: Path) -> None:
    prepare(tmp_path)
    prepare(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == set(FOLDERS)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigError, match="data folder"):
        prepare(tmp_path / "data")
