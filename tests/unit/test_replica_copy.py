"""Versions travel between servers: whole, verified, resumed after a break, whatever a source sends."""

import asyncio
import filecmp
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmgr.clock import SystemClock
from kmgr.errors import Unavailable
from kmgr.ids import VersionId
from kmgr.replica import fetch, transfer
from kmgr.replica import manifest as m
from kmgr.replica.frames import HEAD, Kind
from kmgr.replica.images import Room, version_path
from kmgr.replica.progress import CopyStatus
from kmgr.replica.pull import Pull
from tests.lab.sites import FRAME, MIB, QUICK, V1, Site, disk, hold_back, newer, spoil, three_sites, until


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[list[Site]]:
    yield from three_sites(tmp_path)


def counted(sizes: list[int]) -> Callable[[bytes], bytes]:
    """Note how long each piece is that is sent."""

    def note(data: bytes) -> bytes:
        sizes.append(len(data))
        return data

    return note


def answering(lie: bytes) -> Callable[[bytes], bytes]:
    """Send something else instead of what one has."""
    return lambda data: lie if len(data) == HEAD.size and data[0] == Kind.HAVE else data


async def test_every_server_gets_the_same_file(sites: list[Site], tmp_path: Path) -> None:
    original = disk(tmp_path / "disk")
    copy = tmp_path / "kept"
    copy.write_bytes(original.read_bytes())
    manifest = await sites[0].add_version(original)
    said = await asyncio.gather(*(site.agent.run_once() for site in sites))
    assert said[0] == ""
    assert all("version 1 of 'Debian' copied" in text for text in said[1:])
    for site in sites:
        assert filecmp.cmp(site.raw, copy, shallow=False)
        assert site.raw.stat().st_mode & 0o777 == 0o444
        assert site.raw.stat().st_blocks * 512 < manifest.used_bytes + MIB
        assert site.holders() == tuple(s.id for s in sites)
        assert site.agent.progress() == {V1: (manifest.blocks, manifest.blocks)}
        assert site.agent.problems() == ()
        assert await site.agent.run_once() == ""
        assert sorted(file.name for file in site.images.folder.glob("*.*")) == ["ver-1.manifest", "ver-1.raw"]


async def test_a_copy_that_was_broken_off_is_resumed_not_repeated(sites: list[Site], tmp_path: Path) -> None:
    manifest = await sites[0].add_version(disk(tmp_path / "disk"))
    sent = []

    def three_then_silence(data: bytes) -> bytes:
        if len(data) > FRAME:
            sent.append(data)
        return data if sum(map(len, sent)) <= 3 * m.PIECE_BYTES else b""

    spoil(sites[0], three_then_silence)
    running = asyncio.create_task(sites[1].agent.run_once())
    await until(lambda: sites[1].agent.progress()[V1][0] >= 48)
    inlet = await transfer.open_blocks(sites[2].requests, sites[1].id, sites[2].version(), pieces=manifest.pieces)
    have = await inlet.next()
    assert (have.kind, int.from_bytes(have.data, "little").bit_count()) == (Kind.HAVE, 3)
    inlet.close("it was looked at")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not sites[1].raw.exists()

    # What was right but is no longer so on the disk is not believed, and only that block is sent again.
    kept = fetch.listed(int.from_bytes(have.data, "little"))
    rotten = manifest.piece(kept[1])[0]
    with sites[1].images.side(V1, "part").open("r+b") as part:
        part.seek(rotten.offset)
        part.write(b"rot")
    sites[0].start()
    sites[1].start()
    resent: list[int] = []
    spoil(sites[0], counted(resent))
    assert "copied" in await sites[1].agent.run_once()
    assert filecmp.cmp(sites[0].raw, sites[1].raw, shallow=False)
    missing = [block for piece in range(manifest.pieces) if piece not in kept for block in manifest.piece(piece)]
    assert sum(size for size in resent if size > FRAME) == sum(block.length for block in (*missing, rotten))


async def test_an_unfinished_copy_removed_under_its_feet_is_named_and_begun_anew(
    sites: list[Site], tmp_path: Path
) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    part = sites[1].images.side(V1, "part")

    def removing(data: bytes) -> bytes:
        part.unlink(missing_ok=True)
        return data

    spoil(sites[0], removing)
    assert await sites[1].agent.run_once() == ""
    assert "was removed while it was written" in sites[1].agent.problems()[0]
    assert not sites[1].raw.exists()
    sites[0].start()
    assert "copied" in await sites[1].agent.run_once()
    assert filecmp.cmp(sites[0].raw, sites[1].raw, shallow=False)


@pytest.mark.parametrize("within", [False, True])
async def test_a_source_whose_file_became_shorter_gives_nothing_of_the_rest(
    within: bool, sites: list[Site], tmp_path: Path
) -> None:
    manifest = await sites[0].add_version(disk(tmp_path / "disk"))
    await sites[1].agent.run_once()
    sites[0].raw.chmod(0o600)
    with sites[0].raw.open("r+b") as file:
        # In the second case in the middle of a piece, of which the beginning can be given.
        file.truncate(manifest.block(8).offset + 1000 if within else MIB)
    assert "copied" in await sites[2].agent.run_once()
    assert filecmp.cmp(sites[1].raw, sites[2].raw, shallow=False)
    assert sites[2].agent.problems() == ()


async def test_answers_that_were_not_asked_for_end_the_stream(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    forged = HEAD.pack(Kind.BLOCKS, 2, 0)
    spoil(sites[0], answering(forged))
    assert await sites[1].agent.run_once() == ""
    assert "no server that has the rest" in sites[1].agent.problems()[0]


async def test_frames_larger_than_can_be_end_the_stream_before_they_take_memory(
    sites: list[Site], tmp_path: Path
) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    for kind in (*Kind, 77):
        lie = HEAD.pack(kind, 0, 1 << 31)
        spoil(sites[0], answering(lie))
        inlet = await transfer.open_blocks(sites[1].requests, sites[0].id, sites[0].version(), pieces=4)
        with pytest.raises(Unavailable, match="that cannot be"):
            await inlet.next()
        sites[0].start()


async def test_a_kill_at_any_moment_leaves_files_from_which_the_copy_ends_right(
    sites: list[Site], tmp_path: Path
) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    moments: list[Path] = []

    def remembered(data: bytes) -> bytes:
        moments.append(tmp_path / f"moment-{len(moments)}")
        shutil.copytree(sites[1].folder / "images", moments[-1])
        return data

    spoil(sites[0], remembered)
    await sites[1].agent.run_once()
    sites[0].start()
    assert len(moments) >= 10
    for moment in moments:
        for file in sites[1].images.folder.glob("*.*"):
            file.unlink()
        shutil.copytree(moment, sites[1].images.folder, dirs_exist_ok=True)
        sites[1].start()
        assert "copied" in await sites[1].agent.run_once()
        assert filecmp.cmp(sites[0].raw, sites[1].raw, shallow=False)
        assert len(list(sites[1].images.folder.glob("*.*"))) == 2


async def test_a_new_version_is_sent_only_where_it_differs(sites: list[Site], tmp_path: Path) -> None:
    manifest = await sites[0].add_version(disk(tmp_path / "disk"))
    await sites[1].agent.run_once()
    await sites[0].add_version(newer(sites[0].raw, manifest, tmp_path / "newer"), version=VersionId("ver-2"))
    sent: list[int] = []
    spoil(sites[0], counted(sent))
    # One server has rot in its older version: what it holds of that is not taken over.
    sites[1].raw.chmod(0o600)
    with sites[1].raw.open("r+b") as file:
        file.seek(manifest.block(manifest.blocks - 1).offset)
        file.write(b"rot")
    assert "version 2 of 'Debian' copied" in await sites[1].agent.run_once()
    changed = [manifest.block(0), manifest.block(manifest.blocks - 1)]
    assert sum(size for size in sent if size > FRAME) == sum(block.length for block in changed)
    there, here = (version_path(site.folder, VersionId("ver-2")) for site in sites[:2])
    assert filecmp.cmp(there, here, shallow=False)


async def test_a_version_that_is_deleted_while_it_is_copied_is_given_up(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    spoil(sites[0], lambda data: data[:0])
    running = asyncio.create_task(sites[1].agent.run_once())
    await until(sites[1].images.side(V1, "part").exists)
    for statement in ("delete from versions", "delete from images", "delete from holdings"):
        sites[1].grid.store.writer.execute(statement)
    assert await running == ""
    assert await sites[1].agent.run_once() == "ver-1 removed"
    assert list(sites[1].images.folder.glob("*.*")) == []


async def test_wrong_bytes_are_never_kept_and_their_sender_is_named(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk", size=64 * MIB, used=24 * MIB))
    await sites[1].agent.run_once()
    lied = asyncio.Event()

    def lie(data: bytes) -> bytes:
        if len(data) <= FRAME:
            return data
        lied.set()
        return b"X" + data[1:]

    spoil(sites[0], lie)
    hold_back(sites[1], lied)
    assert "copied" in await sites[2].agent.run_once()
    assert filecmp.cmp(sites[1].raw, sites[2].raw, shallow=False)
    (problem,) = sites[2].agent.problems()
    assert "wrong bytes came from srv-a" in problem


async def test_a_source_that_takes_its_time_to_answer_is_waited_for(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    answers = asyncio.Event()
    hold_back(sites[0], answers)
    running = asyncio.create_task(sites[1].agent.run_once())
    await asyncio.sleep(3 * QUICK.patience_s)
    answers.set()
    assert "copied" in await running


async def test_with_only_a_liar_to_ask_nothing_is_kept(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    spoil(sites[0], lambda data: data if len(data) <= FRAME else b"X" + data[1:])
    assert await sites[2].agent.run_once() == ""
    assert "no server that has the rest" in sites[2].agent.problems()[0]
    assert not sites[2].raw.exists()
    assert sites[2].holders() == (sites[0].id,)


async def test_an_image_larger_than_the_free_disk_is_named_and_tried_again(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    sites[1].room = Room(free_bytes=4 * MIB, total_bytes=10 * MIB)
    assert await sites[1].agent.run_once() == ""
    (problem,) = sites[1].agent.problems()
    assert "the disk is too small" in problem
    assert "Make room" in problem
    sites[1].room = None
    assert "copied" in await sites[1].agent.run_once()
    assert sites[1].agent.problems() == ()


async def test_a_lost_file_is_reported_and_copied_again(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    await sites[1].agent.run_once()
    sites[1].raw.unlink()
    said = await sites[1].agent.run_once()
    assert "missing here" in said
    assert "copied" in said
    assert filecmp.cmp(sites[0].raw, sites[1].raw, shallow=False)
    assert sites[1].holders() == (sites[0].id, sites[1].id)


async def test_the_only_copy_is_not_given_up_for_a_lost_manifest(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    sites[0].images.side(V1, "manifest").unlink()
    sites[0].start()
    assert await sites[0].agent.run_once() == ""
    assert sites[0].holders() == (sites[0].id,)
    assert "copied" in await sites[1].agent.run_once()


async def test_a_damaged_file_is_replaced_by_a_good_one(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    await sites[1].agent.run_once()
    sites[1].raw.chmod(0o600)
    with sites[1].raw.open("r+b") as file:
        file.truncate(MIB)
    assert "copied" in await sites[1].agent.run_once()
    assert filecmp.cmp(sites[0].raw, sites[1].raw, shallow=False)
    assert not sites[1].images.side(V1, "damaged").exists()


async def test_a_whole_file_unknown_to_the_state_is_reported_not_copied(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    await sites[1].agent.run_once()
    await sites[0].do("version.gone", version=V1, server=sites[1].id)
    sites[1].start()
    assert await sites[1].agent.run_once() == "version 1 of 'Debian' is here"


async def test_files_of_a_deleted_image_are_removed_and_strangers_only_after_a_while(
    sites: list[Site], tmp_path: Path
) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    stranger = sites[0].images.side(VersionId("ver-9"), "raw")
    stranger.write_bytes(b"an import that is just ending")
    await sites[0].agent.run_once()
    for statement in ("delete from versions", "delete from images", "delete from holdings"):
        sites[0].grid.store.writer.execute(statement)
    assert await sites[0].agent.run_once() == "ver-1 removed"
    assert [file.name for file in sites[0].images.folder.glob("*.*")] == ["ver-9.raw"]


async def test_without_any_source_the_copy_waits_with_a_reason(sites: list[Site], tmp_path: Path) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    sites[0].requests._network.down.add(sites[0].id)
    assert await sites[1].agent.run_once() == ""
    assert "cannot be copied to this server" in sites[1].agent.problems()[0]
    with pytest.raises(Unavailable):
        await sites[1].requests.call(sites[0].id, "manifest", {"version": V1})


class Recording(SystemClock):
    """Notes for how long somebody wanted to sleep, and lets them go on at once."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


async def test_a_source_with_a_limit_waits_as_long_as_its_bytes_take(sites: list[Site], tmp_path: Path) -> None:
    manifest = await sites[0].add_version(disk(tmp_path / "disk"))
    sites[0].clock = clock = Recording()
    sites[0].start()
    await sites[0].do("setting.set", name="image_mbit_s", value=160)
    assert await sites[0].agent.run_once() == ""
    assert "copied" in await sites[1].agent.run_once()
    # Since nobody really waited, what is owed adds up to the whole copy but for the burst and the time it took.
    assert max(clock.slept) > manifest.used_bytes / 20_000_000 / 4
    assert filecmp.cmp(sites[0].raw, sites[1].raw, shallow=False)


async def test_a_copy_tells_its_rate_its_rest_and_its_sources(sites: list[Site], tmp_path: Path) -> None:
    manifest = await sites[0].add_version(disk(tmp_path / "disk", size=64 * MIB, used=24 * MIB))
    told: list[CopyStatus] = []
    pull = Pull(
        sites[0].version(), images=sites[1].images, requests=sites[1].requests, clock=sites[1].clock,
        sources=lambda: [sites[0].id],
    )  # fmt: skip

    def looking(data: bytes) -> bytes:
        told.append(pull.status())
        return data

    spoil(sites[0], looking)
    await pull.run()
    assert told[0].here_bytes == 0
    assert told[0].total_bytes == told[-1].total_bytes == manifest.used_bytes
    assert [one.here_bytes for one in told] == sorted(one.here_bytes for one in told)
    assert 0 < told[-1].here_bytes < manifest.used_bytes
    assert told[-1].rate > 0
    assert told[-1].remaining_s is not None
    assert told[-1].sources == (sites[0].id,)
    end = pull.status()
    assert (end.received_bytes, end.twice_bytes, end.reused_bytes) == (manifest.used_bytes, 0, 0)
