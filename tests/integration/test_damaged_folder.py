"""What disks, power cuts and hasty repairs do to a data folder: a named end or a told repair, never a silent loss."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.demo.cluster import Cluster
from kmgr.grid.envelope import Command, encode
from kmgr.grid.raft.journal import ENVELOPE, Journal
from kmgr.grid.raft.logfile import LogFile
from kmgr.grid.raft.records import Entry
from kmgr.ids import CommandId
from tests.lab import grids
from tests.lab.api import Api, wait_for
from tests.lab.daemons import KMGR, Daemon, kmgr, sets
from tests.lab.loop_disk import loop_disk
from tests.lab.ports import port

PORT = 270
PASSWORD = "correct-horse-7"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


class Solo(Daemon):
    """The only server of a grid, with an administrator."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.web = port(PORT)
        self.grid_port = port(PORT, {self.web})

    def found(self) -> "Solo":
        words = ["init", "--data", str(self.data), "--name", "solo", "--grid", "Solo", "--password-file", "-"]
        done = kmgr(*words, *sets(self.web, self.grid_port), stdin=PASSWORD)
        assert done.returncode == 0, done.stderr
        return self

    def boss(self) -> Api:
        def look() -> Api | None:
            api = self.api
            answer = api.ask("POST", "/sessions", {"user": "admin", "password": PASSWORD})
            return api.log_in("admin", PASSWORD) if answer.status < 300 else None

        return wait_for("the administrator is let in", look, timeout_s=20)

    def accounts(self) -> set[str]:
        return {account["name"] for account in self.boss().items("accounts")}

    def add(self, name: str) -> None:
        body = {"name": name, "display_name": name, "role": "user", "groups": [], "password": PASSWORD}
        self.boss().ask("POST", "/accounts", body).ok()

    def refuses(self, status: int, *words: str) -> str:
        """Start it and expect its end with this status and one last line that has these words."""
        ended = kmgr("run", "--data", str(self.data))
        last = ended.stderr.strip().splitlines()[-1]
        assert ended.returncode == status, ended.stderr
        assert last.startswith("kmgr: ")
        for word in words:
            assert word in last, last
        assert "Traceback" not in ended.stderr
        return last

    def ended(self, status: int) -> str:
        """Wait until it ends by itself; return its last line."""
        assert self._child is not None
        assert self._child.wait(30) == status, self.log[-2000:]
        return self.log.strip().splitlines()[-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(short_tmp: Path) -> Path:
    """The folder of a grid of one with three accounts, stopped; each test damages a copy of it."""
    made = Solo(short_tmp / "solo-whole").found()
    made.start()
    for name in ("anna", "bert", "carla"):
        made.add(name)
    made.stop()
    return made.data


@pytest.fixture
def solo(whole: Path, request: pytest.FixtureRequest) -> Iterator[Solo]:
    """A copy of that server for one test."""
    made = Solo(whole.with_name(f"solo-{abs(hash(request.node.name)) % 10**8}"))
    shutil.copytree(whole, made.data, ignore=shutil.ignore_patterns("*.sock"))
    yield made
    if made.alive:
        made.stop()


EVERYBODY = {"admin", "anna", "bert", "carla"}


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


# ── the state ──


@pytest.mark.parametrize("how", ["header", "middle", "empty"])
def test_a_damaged_state_is_made_anew_from_the_log_and_that_is_said(solo: Solo, how: str) -> None:
    state = solo.data / "state.sqlite"
    size = state.stat().st_size
    if how == "header":
        overwrite(state, 0, b"not a database, this" * 20)
    elif how == "middle":
        for page in range(4096, size, 8192):
            overwrite(state, page, b"\xff" * 4096)
    else:
        os.truncate(state, 100)
    solo.start()
    assert solo.accounts() == EVERYBODY
    assert "made anew from the log" in solo.log
    told = json.loads(kmgr("status", "--json", "--data", str(solo.data)).stdout)["problems"]
    assert any("made anew from the log" in text for text in told)
    assert (solo.data / "state.sqlite.damaged").exists()
    solo.add("dora")
    solo.stop()
    solo.start()
    assert solo.accounts() == EVERYBODY | {"dora"}
    assert "problems" in kmgr("status", "--json", "--data", str(solo.data)).stdout


def test_a_state_that_goes_bad_while_it_is_read_ends_the_daemon_and_comes_back_from_the_log(solo: Solo) -> None:
    solo.start()
    state = solo.data / "state.sqlite"
    for page in range(4096, state.stat().st_size, 4096):
        overwrite(state, page, b"\xff" * 4096)
    wait_for("somebody meets it", lambda: not solo.alive or not _knocked(solo.api), timeout_s=30)
    last = solo.ended(69)
    assert "made anew from the log" in last
    assert "please report" not in solo.log
    solo.start()
    assert solo.accounts() == EVERYBODY


def test_a_lost_state_comes_back_from_the_log(solo: Solo) -> None:
    for path in solo.data.glob("state.sqlite*"):
        path.unlink()
    solo.start()
    assert solo.accounts() == EVERYBODY


def test_a_damaged_state_without_a_log_is_the_end(solo: Solo) -> None:
    overwrite(solo.data / "state.sqlite", 0, b"x" * 100)
    shutil.rmtree(solo.data / "raft")
    solo.refuses(78, "damaged", "kmgr reset")


# ── the log ──


def test_a_log_damaged_in_the_middle_is_never_mended_silently(solo: Solo) -> None:
    journal = solo.data / "raft" / "journal"
    overwrite(journal, journal.stat().st_size // 2, b"\0\1\2\3\4\5\6\7")
    before = contents(solo.data / "raft")
    for _ in range(2):
        solo.refuses(78, "journal is damaged", "let it join again")
    assert contents(solo.data / "raft") == before


def test_a_file_that_is_no_log_is_named(solo: Solo) -> None:
    (solo.data / "raft" / "journal").write_bytes(b"Dear administrator")
    solo.refuses(78, "does not begin like a log of kmgr")


def test_a_torn_end_of_the_log_is_what_a_crash_leaves_and_nothing_is_lost(solo: Solo) -> None:
    with (solo.data / "raft" / "journal").open("ab") as journal:
        journal.write(b"\x40\0\0\0\1\2\3\4\1half a rec")
    solo.start()
    assert solo.accounts() == EVERYBODY


def test_an_older_copy_of_the_log_is_noticed(solo: Solo) -> None:
    kept = solo.data.with_suffix(".kept")
    shutil.copytree(solo.data / "raft", kept / "raft")
    shutil.copy(solo.data / "state.sqlite", kept / "state.sqlite")
    solo.start()
    solo.add("dora")
    solo.stop()
    # The log alone: the state knows better.
    newer = solo.data.with_suffix(".newer")
    shutil.copytree(solo.data, newer, ignore=shutil.ignore_patterns("*.sock"))
    shutil.rmtree(solo.data / "raft")
    shutil.copytree(kept / "raft", solo.data / "raft")
    solo.refuses(78, "entries were lost")
    # Log and state together: the note beside the identity knows better.
    for path in solo.data.glob("state.sqlite*"):
        path.unlink()
    shutil.copy(kept / "state.sqlite", solo.data / "state.sqlite")
    solo.refuses(78, "older than this server remembers", "kmgr grid restore")
    # The newer one put back: all is well.
    shutil.rmtree(solo.data)
    shutil.copytree(newer, solo.data)
    solo.start()
    assert solo.accounts() == EVERYBODY | {"dora"}


def test_a_log_that_is_gone_is_not_begun_anew(solo: Solo) -> None:
    shutil.rmtree(solo.data / "raft")
    solo.refuses(78, "is gone")
    for path in solo.data.glob("state.sqlite*"):
        path.unlink()
    solo.refuses(78, "is gone", "kmgr grid restore")
    assert not (solo.data / "raft" / "journal").exists()


def test_a_log_of_a_newer_version_stops_the_server_a_few_times_and_then_for_good(solo: Solo) -> None:
    journal = Journal.open(LogFile(solo.data / "raft" / "journal"))
    command = Command("time.travel", CommandId("cmd-newer"), 1, "test", {})
    journal.add(Entry(ENVELOPE + encode(command), journal.last.index + 1, journal.term))
    journal.close()
    for _ in range(3):
        solo.refuses(70, "time.travel", "install a newer kmgr")
    solo.refuses(78, "stopped 3 times", "install a newer kmgr")
    (solo.data / "run" / "last_stop.json").unlink()
    solo.refuses(70, "install a newer kmgr")


def test_a_damaged_snapshot_is_named(solo: Solo, short_tmp: Path) -> None:
    solo.start()
    file = solo.data.with_suffix(".tar")
    assert kmgr("grid", "backup", str(file), "--data", str(solo.data)).returncode == 0
    solo.stop()
    other = Solo(solo.data.with_suffix(".restored"))
    words = ["grid", "restore", str(file), "--name", "other", "--data", str(other.data)]
    assert kmgr(*words, *sets(other.web, other.grid_port)).returncode == 0
    overwrite(other.data / "raft" / "snapshot", 4096, b"\xff" * 8192)
    before = contents(other.data / "raft")
    other.refuses(78, "snapshot", "is damaged")
    assert contents(other.data / "raft") == before


# ── the identity ──


def test_the_log_of_another_grid_is_refused(solo: Solo) -> None:
    other = Solo(solo.data.with_suffix(".other")).found()
    other.start()
    other.stop()
    shutil.rmtree(solo.data / "raft")
    for path in solo.data.glob("state.sqlite*"):
        path.unlink()
    shutil.copytree(other.data / "raft", solo.data / "raft")
    shutil.copy(other.data / "state.sqlite", solo.data / "state.sqlite")
    (solo.data / "identity" / "promised.json").unlink()
    solo.refuses(78, "another grid", "mixed")


def test_an_identity_that_cannot_be_read_is_named(solo: Solo) -> None:
    (solo.data / "identity" / "identity.json").write_text("{")
    solo.refuses(78, "identity.json cannot be read", "backup")


# ── the disk ──


@contextmanager
def on_a_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "kmgr-test", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@needs_root
def test_a_full_disk_stops_the_daemon_with_a_word_and_room_lets_it_start(short_tmp: Path) -> None:
    with on_a_disk(short_tmp / "full", 64):
        solo = Solo(short_tmp / "full" / "data").found()
        solo.start()
        solo.add("anna")
        filler = solo.data / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        wait_for("it stops", lambda: not solo.alive or not _knocked(solo.api), timeout_s=60)
        last = solo.ended(69)
        assert "No space left on device" in last or "full" in last
        assert "Traceback" not in solo.log
        for _ in range(2):
            solo.refuses(69, "is full", "Make")
        filler.unlink()
        solo.start()
        assert {"admin", "anna"} <= solo.accounts()
        solo.stop()


def _knocked(api: Api) -> bool:
    """Make the log grow by a failed log-in; True if the server can still take that."""
    try:
        return api.ask("POST", "/sessions", {"user": "admin", "password": "wrong-horse-7"}).status < 500
    except OSError:
        return False


@needs_root
def test_a_disk_that_turns_read_only_is_named(short_tmp: Path) -> None:
    folder = short_tmp / "readonly"
    with on_a_disk(folder, 64):
        solo = Solo(folder / "data").found()
        solo.start()
        solo.add("anna")
        solo.stop()
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        solo.refuses(78, "read-only file system", "dmesg")
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        solo.start()
        assert {"admin", "anna"} <= solo.accounts()
        solo.stop()


@needs_root
def test_a_disk_that_turns_read_only_under_a_running_server_is_named(short_tmp: Path) -> None:
    folder = short_tmp / "turns"
    folder.mkdir()
    with loop_disk(folder, mib=96, kind="ext4") as disk:
        subprocess.run(["mount", "-o", "remount,errors=remount-ro", disk], check=True)
        source = subprocess.check_output(["findmnt", "-n", "-o", "SOURCE", disk], text=True).strip()
        trigger = Path("/sys/fs/ext4", Path(source).name, "trigger_fs_error")
        if not trigger.exists():
            pytest.skip("this kernel cannot be told to find an error")
        (disk / "data").mkdir()
        # What it says must not lie on that disk.
        (short_tmp / "turned").symlink_to(disk / "data")
        solo = Solo(short_tmp / "turned").found()
        solo.start()
        solo.add("anna")
        trigger.write_text("a test")
        wait_for("it stops", lambda: not solo.alive or not _knocked(solo.api), timeout_s=60)
        last = solo.ended(69)
        assert "Read-only file system" in last
        assert "dmesg" in last
        assert "Traceback" not in solo.log
        solo.refuses(78, "read-only file system", "dmesg")


# ── strangers and clocks, on real daemons ──


def test_rubbish_at_the_grid_port_leaves_one_line_and_no_traceback(solo: Solo) -> None:
    solo.start()
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 400, b"\0" * 9000, b""):
        with socket.create_connection(("127.0.0.1", solo.grid_port), timeout=5) as rude:
            rude.send(data)
            rude.settimeout(8)
            try:
                while rude.recv(4096):
                    pass
            except ConnectionError:
                pass
    told = [line for line in solo.log.splitlines() if "connection to the grid port was cut" in line]
    assert len(told) == 1, solo.log
    assert "Traceback" not in solo.log
    assert solo.accounts() == EVERYBODY
    problems = json.loads(kmgr("status", "--json", "--data", str(solo.data)).stdout)["problems"]
    assert any("127.0.0.1 was cut off" in text for text in problems)


def test_a_clock_ten_minutes_off_is_told_and_changes_nothing(
    make_grid: Callable[..., Cluster], tmp_path: Path
) -> None:
    grid = make_grid(
        "clocks", names=("one", "two"), desktops=False, web_port=port(PORT + 20), grid_port=port(PORT + 30)
    )
    grid.start()
    one, two = grid.servers
    two.stop_daemon()
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nreal = time.time_ns\ntime.time_ns = lambda: real() + 600 * 10**9\n"
    )
    child = subprocess.Popen(
        [str(KMGR), "run", "--data", str(two.data)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for("two answers", two.answers, timeout_s=30)
        boss = grids.admin(grid, one)

        def told() -> list[str]:
            return next(s["problems"] for s in boss.items("servers") if s["name"] == "two")

        problem = wait_for("two says so", lambda: [text for text in told() if "clock" in text], timeout_s=20)[0]
        assert "10 min" in problem
        assert "ahead of the other server's" in problem
        body = {"name": "anna", "display_name": "", "role": "user", "groups": [], "password": PASSWORD}
        grids.admin(grid, two).ask("POST", "/accounts", body).ok()
        grids.caught_up(grid.servers)
    finally:
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=20)
    assert "clock" in said
    assert "Traceback" not in said
