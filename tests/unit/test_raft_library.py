"""The wrapped library is exactly the one that was looked at."""

import shutil
import socket
from pathlib import Path

import pytest
from pysyncobj import syncobj

from kmgr.errors import ConfigError
from kmgr.grid.raft.library import check_library

INSTALLED = Path(syncobj.__file__).parent


def test_the_installed_release_is_known() -> None:
    check_library()


def test_another_version_is_refused_with_the_command_that_mends_it() -> None:
    with pytest.raises(ConfigError, match=r"pip install pysyncobj==0\.3\.17"):
        check_library(version="0.3.18")


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_sources_that_were_changed_under_the_same_version_are_refused(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "pysyncobj"
    shutil.copytree(INSTALLED, folder)
    check_library(folder)
    match change:
        case "edit":
            with (folder / "syncobj.py").open("a") as file:
                file.write("# looks harmless\n")
        case "add":
            (folder / "extra.py").write_text("")
        case "remove":
            (folder / "batteries.py").unlink()
    with pytest.raises(ConfigError, match="not those of the release"):
        check_library(folder)


def test_addresses_are_still_written_after_it_is_loaded() -> None:
    assert socket.inet_ntop(socket.AF_INET, b"\x7f\0\0\1") == "127.0.0.1"
