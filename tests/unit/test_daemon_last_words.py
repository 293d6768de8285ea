"""A server that does not run says why on its own screen, with the cure, instead of an address that nobody answers."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kmgr.daemon import last_words, serve, witness
from kmgr.daemon.room import wait_for_room
from kmgr.errors import ConfigError, InvariantBroken, KmgrError, Unavailable

SCREEN = Path(__file__).parents[2] / "appliance" / "files" / "kmgr-console"
PRINT = ":".join(["AB"] * 32)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that systemd gives a daemon."""
    place = tmp_path / "run"
    place.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(place))
    return place


def screen(folder: Path, *, state: str = "active", address: str = "192.0.2.7") -> str:
    """Return what this machine's screen shows; commands of the system are replaced by their answers."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    answers = {"systemctl": state, "hostname": address, "openssl": f"sha256 Fingerprint={PRINT}"}
    for name, answer in answers.items():
        (commands / name).write_text(f"#!/bin/sh\necho '{answer}'\n")
        (commands / name).chmod(0o755)
    env = {"PATH": f"{commands}:{os.environ['PATH']}", "KMGR_STOPPED": str(folder / "run" / last_words.FILE)}
    done = subprocess.run(["sh", SCREEN, "once"], env=env, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout


@pytest.mark.parametrize("life", [serve.serve, witness.serve])
def test_a_server_that_cannot_run_leaves_cause_and_cure_for_its_screen(
    life: Callable[[Path], None], run: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be used"):
        life(tmp_path / "data")
    shown = screen(tmp_path, state="failed")
    words = " ".join(shown.split())
    assert "kmgr does not run on this server" in words
    assert "cannot be used" in words
    assert "Give --data a folder" in words
    assert "systemctl start kmgr" in words
    assert "https://" not in shown
    # A person reads it on a screen of 80 columns.
    assert max(map(len, shown.splitlines())) <= 80
    last_words.forget()
    assert "https://192.0.2.7/" in screen(tmp_path)


@pytest.mark.parametrize(
    ("error", "follows"),
    [
        (Unavailable("the disk of /var/lib/kmgr is full: make room there"), "every few seconds"),
        (ConfigError("the log is damaged: let it join again"), "systemctl start kmgr"),
        (InvariantBroken("log entry 7 came after 5"), "a few times"),
    ],
)
def test_what_follows_by_itself_is_said_too(run: Path, error: KmgrError, follows: str) -> None:
    with pytest.raises(KmgrError), last_words.left():
        raise error
    told = (run / last_words.FILE).read_text()
    assert error.message in told
    assert follows in told
    with last_words.left():
        pass
    assert not list(run.iterdir())


class Nap:
    """Counts how often somebody waited; `then` happens at a certain one."""

    def __init__(self, then: Callable[[], object] = lambda: None, *, at: int = 0) -> None:
        self.then, self.at, self.count = then, at, 0

    def __call__(self, _: float) -> None:
        self.count += 1
        if self.count == self.at:
            self.then()


def test_a_full_disk_is_waited_for_in_one_process_and_said_meanwhile(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state.sqlite"
    state.touch()
    os.truncate(state, 4 << 40)  # full of holes: a start would need room for two of these

    def room() -> None:
        told.append((run / last_words.FILE).read_text())
        os.truncate(state, 0)

    told: list[str] = []
    # By hand it is told at once.
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    by_hand = Nap()
    with pytest.raises(Unavailable, match="is full"):
        wait_for_room(tmp_path, sleep=by_hand)
    assert by_hand.count == 0
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    in_vain = Nap()
    with pytest.raises(Unavailable, match="is full"):
        wait_for_room(tmp_path, sleep=in_vain)
    assert in_vain.count > 5
    nap = Nap(room, at=3)
    wait_for_room(tmp_path, sleep=nap)
    assert nap.count == 3
    assert "is full" in told[0]
    assert "every few seconds" in told[0]


def test_without_a_folder_of_systemd_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError), last_words.left():
        raise ConfigError("no")
    assert not list(tmp_path.iterdir())


def test_a_screen_without_words_of_kmgr_does_not_show_an_address_that_nobody_answers(tmp_path: Path) -> None:
    assert "journalctl -u kmgr" in screen(tmp_path, state="failed")
    assert "systemctl start kmgr" in screen(tmp_path, state="inactive")
    assert "no network address" in screen(tmp_path, address="127.0.0.1")
    shown = screen(tmp_path)
    assert "https://192.0.2.7/" in shown
    assert PRINT[:47] in shown
