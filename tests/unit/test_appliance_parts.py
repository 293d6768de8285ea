"""The small parts of laboratory, demonstration and images that decide something."""

import fcntl
import os
import socket
import subprocess
from pathlib import Path
from typing import cast

import pytest

from appliance.demo import ports, scene
from appliance.demo.__main__ import options_of
from appliance.demo.client import Answer, Client
from appliance.demo.cluster import Cluster
from appliance.demo.progress import Progress
from appliance.image import appliance, rootfs
from appliance.image.turns import turn
from appliance.lab import processes
from kmgr.errors import ConfigError, Refused, Unavailable


def test_a_process_is_known_by_id_and_start_and_not_by_id_alone(tmp_path: Path) -> None:
    own = processes.known(os.getpid())
    assert own is not None
    assert own.alive
    processes.write(tmp_path / "pid", own, processes.Known(own.pid, own.started - 1))
    assert processes.read(tmp_path / "pid") == [own, None]


def test_a_process_that_does_not_stop_when_asked_is_made_to() -> None:
    child = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo; while :; do sleep 1 & wait; done"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    with child.stdout:
        child.stdout.readline()
    process = processes.known(child.pid)
    assert process is not None
    assert process.end(0.2) is False
    assert not process.alive
    child.wait()


def test_a_damaged_file_of_processes_names_none(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("12 what\n")
    assert processes.read(tmp_path / "pid") == []
    assert processes.read(tmp_path / "absent") == []


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = busy.getsockname()[1]
        assert not ports.is_free("127.0.0.1", taken)
        assert ports.next_free("127.0.0.1", taken, {taken + 1}) > taken + 1


def test_passwords_are_generated_once_and_kept_for_their_owner_only(tmp_path: Path) -> None:
    password = Cluster(tmp_path).password("admin")
    assert Cluster(tmp_path).password("admin") == password
    assert Cluster(tmp_path).password("user") != password
    assert Cluster(tmp_path).accounts.stat().st_mode & 0o077 == 0


def test_what_is_waited_for_in_vain_is_told_with_its_state_and_a_hint() -> None:
    with pytest.raises(Unavailable, match=r"0 of 3 servers\. Look there"):
        Progress().wait(lambda: (None, "0 of 3 servers"), limit_s=0.01, hint="Look there")


def test_a_refusal_of_the_api_is_told_in_its_own_words() -> None:
    answer = Answer(400, {"error": {"code": "refused", "message": "this is a text file"}})
    with pytest.raises(Refused, match="the upload was answered with 400: this is a text file"):
        answer.ok("the upload")


def test_pins_are_the_lock_without_hashes_and_with_markers() -> None:
    lock = (
        "attrs==26.1.0 \\\n    --hash=sha256:aa\ncolorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:bb\n"
    )
    assert appliance.pinned(lock) == "attrs==26.1.0\ncolorama==0.4.6 ; sys_platform == 'win32'\n"


def test_only_debians_own_sources_are_used_for_a_tree(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    debian = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n"
    signed = debian + "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg"
    other = "Types: deb\nURIs: http://other.example\nSuites: stable\nSigned-By: /usr/share/keyrings/other.gpg"
    (tmp_path / "sources.list.d" / "debian.sources").write_text(f"{signed}\n\n{other}\n")
    (tmp_path / "sources.list.d" / "zother.sources").write_text(other)
    assert rootfs.sources(tmp_path) == signed + "\n"


def test_a_machine_without_debian_sources_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no Debian package source"):
        rootfs.sources(tmp_path)


@pytest.mark.parametrize(
    "words",
    [("start", "three", "--folder", "/x"), ("start", "--folder", "/x", "three"), ("--folder=/x", "start", "three")],
)
def test_the_demonstrations_options_may_stand_anywhere(words: tuple[str, ...]) -> None:
    asked = options_of(words)
    assert (asked.action, asked.server, asked.folder) == ("start", "three", Path("/x"))
    assert options_of(["run"]).server == ""


class Desktops:
    """A grid's API that tells of one desktop, in each of these states once and in the last one for ever."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)

    def items(self, what: str) -> list[dict[str, str]]:
        assert what == "desktops"
        return [{"state": self.states.pop(0) if len(self.states) > 1 else self.states[0]}]


@pytest.mark.parametrize(
    ("states", "old_s"),
    [
        (["building", "building", "ready"], 0.0),
        (["ready", "ready", "building", "building", "ready"], 0.0),  # of before the stop; then it boots again
        (["ready"], scene.LOOKED_S),
    ],
)
def test_the_demonstration_does_not_take_an_old_word_for_a_desktop_that_stands_by(
    states: list[str], old_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene, "LOOKED_S", old_s / 4 or 60.0)
    api = Desktops(*states)
    waited = scene.Director(cast(Client, api), scene.Scene(), Progress()).ready()
    assert api.states == ["ready"]
    assert waited >= old_s / 4


def test_an_image_is_built_by_one_at_a_time_and_another_beside_it(tmp_path: Path) -> None:
    lock = tmp_path / "images" / ".tiny.lock"
    with turn(lock.parent, "tiny"), lock.open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with turn(lock.parent, "tiny"), turn(lock.parent, "kiosk"):
        pass
