"""A disk that returns wrong bytes: found, repaired, named; real files, and a real reflink where it goes."""

import asyncio
import filecmp
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.errors import NotFound
from kmgr.ids import VersionId
from kmgr.replica import manifest as m
from kmgr.replica import queries
from kmgr.replica.inplace import Reader, rewrite
from kmgr.replica.scrub import IDLE_S
from tests.lab.keepers import Keeper, Keepers, LiveClock

V1, V2 = VersionId("ver-1"), VersionId("ver-2")
DAY_S = 86_400.0
NOBODY = 65534


@pytest.fixture
async def keepers(tmp_path: Path) -> AsyncIterator[Keepers]:
    made = Keepers(tmp_path, "abc")
    await made.open()
    yield made
    made.close()


def a_week(keepers: Keepers) -> None:
    keepers.clock.advance(8 * DAY_S)


def damaged(at: Keeper) -> dict[str, int]:
    with at.grid.view() as db:
        return {one.server[4:]: one.damaged for one in queries.holdings(db) if one.damaged}


async def test_flipped_bytes_are_found_repaired_in_place_and_told(keepers: Keepers) -> None:
    a, b = keepers["a"], keepers["b"]
    await keepers.imported(a)
    await keepers.round()
    await b.scrub()
    blocks = list(b.images.manifest(V1).all_blocks())
    inode = b.images.path(V1).stat().st_ino
    running = os.open(b.images.path(V1), os.O_RDONLY)  # a guest that has it open
    for index in (3, 11, len(blocks) - 1):
        b.spoil(V1, blocks[index].offset + 100)
    a_week(keepers)
    assert await b.scrub() >= b.images.manifest(V1).used_bytes
    assert filecmp.cmp(a.images.path(V1), b.images.path(V1), shallow=False)
    assert b.images.path(V1).stat().st_ino == inode
    assert m.digest(os.pread(running, blocks[3].length, blocks[3].offset)) == blocks[3].digest
    os.close(running)
    assert b.images.path(V1).stat().st_mode & 0o777 == 0o444
    (told,) = a.events("alarm")  # one line, however many blocks
    assert told.startswith("b: 3 blocks of version 1 of 'Debian' went bad on its disk")
    assert f"at byte {blocks[3].offset} of {b.images.path(V1)}" in told
    assert "came anew from a" in told
    (problem,) = b.agent.problems()
    assert "3 blocks went bad on this disk" in problem
    assert "repaired. Its disk may be failing" in problem
    assert damaged(a) == {}
    # Still shown after a restart, until a later pass finds nothing.
    b.start()
    await b.agent.run_once()
    await b.scrub()
    assert "3 blocks went bad" in b.agent.problems()[0]
    for _ in range(2):
        a_week(keepers)
        await b.scrub()
    assert b.agent.problems() == ()


async def test_it_goes_on_after_a_restart_where_it_was(keepers: Keepers) -> None:
    a = keepers["a"]
    version = await keepers.imported(a, blocks=3 * (4 << 20) // m.BLOCK_BYTES)
    await a.agent.run_once()
    await a.scrub()
    assert await a.scrub() == 0  # it was verified when it came
    a_week(keepers)
    first = await a.agent.scrub.step()
    assert 0 < first < version.used_bytes
    keepers.clock.advance(60)
    second = await a.agent.scrub.step()
    a.start()
    await a.agent.run_once()
    assert await a.scrub() == version.used_bytes - first - second
    assert await a.scrub() == 0


async def test_what_nobody_has_right_is_told_and_mended_when_somebody_has(keepers: Keepers) -> None:
    a, b = keepers["a"], keepers["b"]
    await keepers.imported(a)
    await a.agent.run_once()
    await a.scrub()
    whole = a.images.path(V1).read_bytes()
    block = a.images.manifest(V1).block(5)
    a.spoil(V1, block.offset)
    a_week(keepers)
    await a.scrub()
    assert damaged(a) == {"a": 1}
    assert "no other server has it right" in a.agent.problems()[0]
    assert "no other server could give the right bytes" in a.events("alarm")[0]
    assert len(a.events("alarm")) == 1
    # Other servers copy what is right of it, and don't take the rest.
    assert (await b.agent.run_once()) == ""
    assert not b.images.path(V1).exists()
    with pytest.raises(NotFound, match="not right on this server either"):
        await b.requests.call(a.id, "block", {"version": V1, "offset": block.offset})
    # Another server turns up that has it.
    (b.images.folder / "ver-1.raw").write_bytes(whole)
    b.images.save_manifest(V1, a.images.side(V1, "manifest").read_bytes())
    b.start()
    await b.agent.run_once()
    keepers.clock.advance(120)
    await a.scrub()
    assert damaged(a) == {}
    assert filecmp.cmp(a.images.path(V1), b.images.path(V1), shallow=False)
    assert "whole again on a" in a.events("image")[0]


async def test_a_server_that_sends_wrong_blocks_is_not_believed_named_and_looks_at_its_own(keepers: Keepers) -> None:
    a, b, c = keepers["a"], keepers["b"], keepers["c"]
    await keepers.imported(a)
    await keepers.round()
    for one in (a, b, c):
        await one.scrub()
    block = b.images.manifest(V1).block(2)
    b.spoil(V1, block.offset)
    asked: list[Any] = []

    async def lie(_peer: Any, body: Any) -> Any:
        asked.append(body)
        return {"data": "bGllcw=="}

    a.requests.serve("block", lie)
    a_week(keepers)
    await b.scrub()
    assert len(asked) == 1
    assert filecmp.cmp(b.images.path(V1), c.images.path(V1), shallow=False)
    told = " | ".join(b.events("alarm"))
    assert "a sent wrong bytes of version 1 of 'Debian' to b" in told
    assert "came anew from c" in told
    assert any("wrong bytes came from a" in problem for problem in b.agent.problems())
    # It was told, so it reads that version next, whatever its plan is.
    await a.do("setting.set", name="scrub_days", value=0)
    await a.agent.run_once()
    assert await a.scrub() > 0


async def test_a_liar_in_a_copy_is_named_in_the_history_and_scrubs_itself_whole(keepers: Keepers) -> None:
    a, b, c = keepers["a"], keepers["b"], keepers["c"]
    await keepers.imported(a)
    await b.agent.run_once()
    for one in (a, b):
        await one.agent.run_once()
        await one.scrub()
    for block in a.images.manifest(V1).all_blocks():
        a.spoil(V1, block.offset)
    # At first only lies reach it: otherwise chance might have it ask the honest one for everything.
    keepers.network.cut.add(frozenset({b.id, c.id}))
    assert await c.agent.run_once() == ""
    assert not c.images.path(V1).exists()
    assert c.agent.here() == []
    assert "c" not in a.holders(V1)
    assert any("a sent wrong bytes of version 1" in text for text in c.events("alarm"))
    keepers.network.cut.clear()
    assert "copied" in await c.agent.run_once()
    assert filecmp.cmp(b.images.path(V1), c.images.path(V1), shallow=False)
    await a.scrub()
    assert filecmp.cmp(b.images.path(V1), a.images.path(V1), shallow=False)


async def test_a_block_that_another_version_here_has_needs_nobody_else(keepers: Keepers) -> None:
    a = keepers["a"]
    await keepers.imported(a)
    await keepers.imported(a, n=2, like=V1)
    await a.agent.run_once()
    await a.scrub()
    good = a.images.path(V2).read_bytes()
    a.spoil(V2, a.images.manifest(V2).block(4).offset)
    a_week(keepers)
    await a.scrub()
    assert a.images.path(V2).read_bytes() == good
    assert "came anew from its own other versions" in a.events("alarm")[0]


async def test_a_file_that_was_removed_cut_or_barred_is_named(keepers: Keepers) -> None:
    a, b = keepers["a"], keepers["b"]
    version = await keepers.imported(a)
    await keepers.round()
    path = b.images.path(V1)
    path.unlink()
    await b.scrub()  # nothing to read is not its business
    assert f"its file {path} was removed" in await b.agent.run_once()
    path.chmod(0o644)
    os.truncate(path, 4096)
    said = await b.agent.run_once()
    assert f"has 4096 bytes instead of {version.size_bytes}" in said
    assert "4096 bytes instead" in b.events("image")[1]
    assert filecmp.cmp(a.images.path(V1), path, shallow=False)
    path.chmod(0o000)
    assert await b.agent.run_once() == ""
    assert path.stat().st_mode & 0o777 == 0o444


async def test_it_rests_while_an_image_is_copied(keepers: Keepers) -> None:
    a, b = keepers["a"], keepers["b"]
    await keepers.imported(a)
    await keepers.round()
    await b.scrub()
    a_week(keepers)
    await keepers.imported(a, n=2)
    asked, answers = asyncio.Event(), asyncio.Event()
    honest = a.requests._handlers._calls["manifest"]

    async def late(peer: Any, body: Any) -> Any:
        asked.set()
        await answers.wait()
        return await honest(peer, body)

    a.requests.serve("manifest", late)
    copying = asyncio.create_task(b.agent.run_once())
    await asked.wait()
    assert await b.agent.scrub.step() == 0
    answers.set()
    assert "copied" in await copying
    assert await b.agent.scrub.step() > 0


async def test_it_rests_when_it_is_switched_off(keepers: Keepers) -> None:
    a = keepers["a"]
    await keepers.imported(a)
    await a.do("setting.set", name="scrub_days", value=0)
    await a.agent.run_once()
    await a.scrub()
    a_week(keepers)
    assert await a.scrub() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="this needs the right to become somebody else")
def test_who_owns_the_sealed_file_may_repair_it_without_being_root() -> None:
    with tempfile.TemporaryDirectory(prefix="kmgr-scrub-") as made:
        folder = Path(made)
        path, data = folder / "ver-1.raw", b"right" * 1000
        path.write_bytes(b"wrong" * 1000 + bytes(96))
        path.chmod(0o444)
        for one in (folder, path):
            os.chown(one, NOBODY, NOBODY)
        pid = os.fork()
        if not pid:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            kept = rewrite(path, m.Block(0, len(data), m.digest(data)), data)
            os._exit(0 if kept else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert path.read_bytes()[: len(data)] == data
        assert path.stat().st_mode & 0o777 == 0o444


class Napping(LiveClock):
    """A clock on which sleeping takes no time but is counted; it ends a loop that has nothing more to do."""

    def __init__(self) -> None:
        super().__init__()
        self.naps: list[float] = []

    async def sleep(self, seconds: float) -> None:
        """Count and let others run."""
        self.naps.append(seconds)
        self.advance(seconds)
        if seconds >= IDLE_S:
            raise asyncio.CancelledError
        await asyncio.sleep(0)


async def test_it_reads_no_faster_than_it_may_and_can_be_started_again(tmp_path: Path) -> None:
    clock = Napping()
    keepers = Keepers(tmp_path, "a", clock=clock)
    await keepers.open()
    try:
        a = keepers["a"]
        version = await keepers.imported(a, blocks=3 * (4 << 20) // m.BLOCK_BYTES)
        await a.do("setting.set", name="scrub_mib_s", value=2)
        await a.agent.run_once()
        for _ in range(2):
            with pytest.raises(asyncio.CancelledError):
                await a.agent.scrub.run()
            clock.advance(8 * DAY_S)
        assert sum(nap for nap in clock.naps if nap < IDLE_S) == pytest.approx(version.used_bytes / (2 << 20))
    finally:
        keepers.close()


@pytest.fixture
def reflinking(tmp_path: Path) -> Any:
    """Mount a small file system whose files can share blocks."""
    disk, folder = tmp_path / "disk", tmp_path / "mounted"
    folder.mkdir()
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    for step in (
        ["mkfs.xfs", "-q", "-m", "reflink=1", str(disk)],
        ["mount", "-o", "loop", str(disk), str(folder)],
    ):
        try:
            done = subprocess.run(step, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("mkfs.xfs is not installed")
        if done.returncode:
            pytest.skip("this needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_repair_leaves_the_version_alone_that_shares_the_block(reflinking: Path) -> None:
    keepers = Keepers(reflinking, "ab")
    await keepers.open()
    try:
        a, b = keepers["a"], keepers["b"]
        await keepers.imported(a)
        await keepers.round()
        block = b.images.manifest(V1).block(0)
        # The same bytes under a second name, sharing what lies on the disk.
        other = b.images.folder / "_other"
        b.spoil(V1, block.offset)
        copy = ["cp", "--reflink=always", str(b.images.path(V1)), str(other)]
        await asyncio.to_thread(subprocess.run, copy, check=True)
        wrong = other.read_bytes()
        await b.scrub()
        a_week(keepers)
        await b.scrub()
        assert filecmp.cmp(a.images.path(V1), b.images.path(V1), shallow=False)
        assert other.read_bytes() == wrong
        reader = Reader(b.images.path(V1))
        assert reader.direct  # the disk was asked, not the page cache
        reader.close()
        await b.agent.run_once()
        assert b.agent.vitals()["extra"]["kept"][V1]["shared_bytes"] > 0
    finally:
        keepers.close()
