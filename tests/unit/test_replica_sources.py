"""One server that is broken, silent or has a bad disk keeps nobody from having a version of the others."""

import asyncio
import errno
import filecmp
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.errors import KmgrError, Unavailable
from kmgr.grid.port import Stream
from kmgr.ids import ServerId, VersionId
from kmgr.replica import images, manifest_file
from kmgr.replica import manifest as m
from kmgr.replica.agent import LIED_S
from kmgr.replica.blocks import read_blocks
from kmgr.replica.images import Images
from kmgr.replica.pace import Pace
from kmgr.replica.part import Part, Whole
from kmgr.replica.pull import Pull
from tests.lab.keepers import Keepers
from tests.lab.sites import FRAME, MIB, V1, Site, disk, newer, spoil, three_sites, until

V2 = VersionId("ver-2")
Accepts = Callable[[], Awaitable[Stream]]


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[list[Site]]:
    yield from three_sites(tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[Site]]:
    yield from three_sites(tmp_path, "ab")


def unreadable() -> OSError:
    return OSError(errno.EIO, "Input/output error")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_holder_that_cannot_read_its_manifest_is_passed_over(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    await sites[1].agent.run_once()
    sites[0].start()
    for name in ("stretch", "opened"):
        real = getattr(manifest_file, name)

        def broken(path: Path, *rest: Any, real: Any = real, **more: Any) -> Any:
            if path.is_relative_to(sites[0].folder):
                raise unreadable()
            return real(path, *rest, **more)

        monkeypatch.setattr(manifest_file, name, broken)
    with pytest.raises(Unavailable, match="reading the manifest of version ver-1 was stopped by the disk"):
        await sites[2].requests.call(sites[0].id, "manifest", {"version": V1})
    assert "copied" in await sites[2].agent.run_once()
    assert filecmp.cmp(sites[1].raw, sites[2].raw, shallow=False)


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("its disk is full", code="disk_full"),
        KmgrError("it met a bug", code="bug"),
    ],
)
async def test_a_source_whose_own_disk_is_full_or_broken_does_not_end_the_copy(
    sites: list[Site], tmp_path: Path, error: KmgrError
) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    await sites[1].agent.run_once()

    async def refuses(_peer: ServerId, _body: Any, _accept: Accepts) -> None:
        raise error

    sites[0].requests.serve_stream("blocks", refuses)
    assert "copied" in await sites[2].agent.run_once()
    assert filecmp.cmp(sites[1].raw, sites[2].raw, shallow=False)


@pytest.mark.parametrize("others", [True, False])
async def test_a_bad_sector_at_a_source_is_a_piece_that_it_lacks(
    sites: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    await sites[0].add_version(disk(tmp_path / "disk"))
    if others:
        await sites[1].agent.run_once()
    spot, read, at_hand = sites[0].raw.stat().st_ino, Whole.read, Whole.at_hand

    def is_bad(whole: Whole, piece: int) -> bool:
        return piece == 0 and os.fstat(whole.fileno()).st_ino == spot

    def bad(self: Whole, piece: int, wanted: int) -> bytes:
        if is_bad(self, piece):
            raise unreadable()
        return read(self, piece, wanted)

    monkeypatch.setattr(Whole, "read", bad)
    monkeypatch.setattr(
        Whole, "at_hand", lambda self, piece, *more: not is_bad(self, piece) and at_hand(self, piece, *more)
    )
    said = await asyncio.wait_for(sites[2].agent.run_once(), 5)
    if others:
        assert "copied" in said
        assert filecmp.cmp(sites[1].raw, sites[2].raw, shallow=False)
    else:
        assert "no server that has the rest of it can be reached" in sites[2].agent.problems()[0]
        assert sites[2].images.side(V1, "part").exists(), "what came is kept for the next time"


async def test_a_source_that_never_says_what_it_has_is_not_waited_for(two: list[Site], tmp_path: Path) -> None:
    await two[0].add_version(disk(tmp_path / "disk"))

    async def mute(_peer: ServerId, _body: Any, accept: Accepts) -> None:
        stream = await accept()
        while await stream.reader.read(1000):
            pass

    two[0].requests.serve_stream("blocks", mute)
    pull = Pull(
        two[0].version(), images=two[1].images, requests=two[1].requests, clock=two[1].clock,
        sources=lambda: [two[0].id], pace=Pace(look_s=0.01, pause_s=0.02, patience_s=0.05, silence_s=0.05),
    )  # fmt: skip
    with pytest.raises(Unavailable, match="no server that has the rest"):
        await asyncio.wait_for(pull.run(), 5)


@pytest.mark.parametrize("what", ["a block", "the manifest", "the manifest later"])
async def test_an_older_version_that_its_disk_cannot_read_is_no_obstacle_to_the_next(
    two: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    manifest = await two[0].add_version(disk(tmp_path / "disk"))
    await two[1].agent.run_once()
    await two[0].add_version(newer(two[0].raw, manifest, tmp_path / "newer"), version=V2)
    failed: list[str] = []
    match what:
        case "a block":
            read = Whole.read_blocks

            def bad(self: Whole, blocks: Any) -> bytes:
                if not failed:
                    failed.append(what)
                    raise unreadable()
                return read(self, blocks)

            monkeypatch.setattr(Whole, "read_blocks", bad)
        case "the manifest":
            known = two[1].images.manifest

            def none(version: VersionId) -> Any:
                if version == V1:
                    failed.append(what)
                    raise unreadable()
                return known(version)

            monkeypatch.setattr(two[1].images, "manifest", none)
        case _:
            getitem, own = manifest_file.KeptDigests.__getitem__, two[1].images.side(V1, "manifest")

            def lost(self: manifest_file.KeptDigests, where: slice) -> bytes:
                if self.path == own and failed:
                    raise Unavailable("it cannot be read", code="disk")
                return getitem(self, where)

            two[1].images.manifest(V1)
            failed.append(what)
            monkeypatch.setattr(manifest_file.KeptDigests, "__getitem__", lost)
    assert "version 2 of 'Debian' copied" in await two[1].agent.run_once()
    assert failed
    assert filecmp.cmp(two[0].images.path(V2), two[1].images.path(V2), shallow=False)


async def test_a_bad_sector_under_an_unfinished_copy_is_written_anew(
    two: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two[0].add_version(disk(tmp_path / "disk"))
    shutil.copyfile(two[0].raw, two[1].images.side(V1, "part"))
    failed: list[bool] = []

    def bad(opened: int, blocks: Any) -> bytes:
        if not failed:
            failed.append(True)
            raise unreadable()
        return read_blocks(opened, blocks)

    monkeypatch.setattr("kmgr.replica.part.read_blocks", bad)
    assert "copied" in await two[1].agent.run_once()
    assert failed
    assert filecmp.cmp(two[0].raw, two[1].raw, shallow=False)


async def test_a_disk_that_refuses_in_an_unforeseen_place_is_named_and_no_bug(
    two: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two[0].add_version(disk(tmp_path / "disk"))

    def refuses(_self: Part) -> int:
        raise unreadable()

    monkeypatch.setattr(Part, "allocated_bytes", refuses)
    assert await two[1].agent.run_once() == ""
    (problem,) = two[1].agent.problems()
    assert "cannot be copied to this server: copying version 1 of 'Debian' was stopped by the disk" in problem


def test_a_file_that_cannot_be_so_long_here_is_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images_here, manifest = Images(tmp_path), m.build(MIB, ())

    def too_long(_file: int, _length: int) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "ftruncate", too_long)
    before = open_files()
    for _ in range(3):
        with pytest.raises(Unavailable, match="File too large"):
            Part(images_here, V1, manifest)
    assert open_files() == before


def test_a_copy_that_was_stopped_reads_no_further_what_an_earlier_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images_here, count = Images(tmp_path), list[int]()
    left = disk(images_here.side(V1, "part"))
    manifest = images.scan(left, on_bytes=lambda _: None, stop=lambda: False)
    part = Part(images_here, V1, manifest)

    def stopping(opened: int, blocks: Any) -> bytes:
        count.append(1)
        part.close()
        return read_blocks(opened, blocks)

    monkeypatch.setattr("kmgr.replica.part.read_blocks", stopping)
    part.resume()
    assert manifest.pieces > 2
    assert len(count) <= manifest.piece_blocks


def bad_sector(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Let no manifest be read from where `file` lies now; what is written anew can be read."""
    spot = file.stat().st_ino
    file.with_name("_bad").hardlink_to(file)  # no other file gets its place
    for name in ("stretch", "opened", "name_of"):
        real = getattr(manifest_file, name)

        def broken(path: Path, *rest: Any, real: Any = real, **more: Any) -> Any:
            if path.exists() and path.stat().st_ino == spot:
                raise unreadable()
            return real(path, *rest, **more)

        monkeypatch.setattr(manifest_file, name, broken)


@pytest.mark.parametrize("raw_too", [False, True])
async def test_a_bad_sector_under_one_manifest_keeps_no_other_version_away(
    two: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw_too: bool
) -> None:
    await two[0].add_version(disk(tmp_path / "disk"))
    await two[1].agent.run_once()
    newer = disk(tmp_path / "newer", used=3 * MIB)
    await two[0].add_version(newer, version=V2)
    two[1].start()
    bad_sector(monkeypatch, two[1].images.side(V1, "manifest"))
    if raw_too:
        scans = images.scan

        def bad(path: Path, **how: Any) -> Any:
            if path == two[1].raw:
                raise unreadable()
            return scans(path, **how)

        monkeypatch.setattr(images, "scan", bad)
    said = await two[1].agent.run_once()
    assert "version 2 of 'Debian' copied" in said
    assert ("version 1 of 'Debian' copied" in said) == raw_too
    assert ("cannot be read any more: Input/output error" in said) == raw_too
    assert two[1].images.intact(two[1].version())
    assert filecmp.cmp(two[0].raw, two[1].raw, shallow=False)
    assert two[1].agent.problems() == ()


async def test_the_only_copy_with_bad_sectors_is_not_read_again_every_few_seconds(
    two: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two[0].add_version(disk(tmp_path / "disk"))
    two[0].start()
    bad_sector(monkeypatch, two[0].images.side(V1, "manifest"))
    read: list[Path] = []

    def bad(path: Path, **_how: Any) -> Any:
        read.append(path)
        raise unreadable()

    monkeypatch.setattr(images, "scan", bad)
    for _ in range(3):
        await two[0].agent.run_once()
    assert read == [two[0].raw]
    assert two[0].raw.exists()


async def test_a_file_whose_place_on_the_disk_is_damaged_is_copied_again(
    two: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two[0].add_version(disk(tmp_path / "disk"))
    await two[1].agent.run_once()
    stat, spot = Path.stat, two[1].raw.stat().st_ino

    def damaged(path: Path, **how: Any) -> os.stat_result:
        told = stat(path, **how)
        if told.st_ino == spot and path == two[1].raw:
            raise OSError(errno.EUCLEAN, "Structure needs cleaning")
        return told

    monkeypatch.setattr(Path, "stat", damaged)
    said = await two[1].agent.run_once()
    assert "cannot be read any more: Structure needs cleaning" in said
    assert "version 1 of 'Debian' copied" in said


async def test_a_disk_that_became_read_only_is_named_and_no_bug(
    two: list[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two[0].add_version(disk(tmp_path / "disk"))

    def refuses() -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(two[0].images, "make_folders", refuses)
    running = asyncio.create_task(two[0].agent.run())
    await until(lambda: bool(two[0].agent.problems()))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    (problem,) = two[0].agent.problems()
    assert problem == "images: looking after them was stopped by the disk: Read-only file system"


async def test_what_is_remembered_of_blocks_that_no_version_has_stops_no_reading_again(
    two: list[Site], tmp_path: Path
) -> None:
    await two[0].add_version(disk(tmp_path / "disk"))
    await two[0].agent.run_once()
    (two[0].images.folder / "_scrub").write_text('{"ver-1": {"next": 0, "done_at": 0, "bad": [99999999]}}')
    assert await two[0].agent.scrub.step() >= 0
    assert two[0].agent.problems() == ()


async def test_a_lie_is_told_for_a_day_and_not_for_ever(tmp_path: Path) -> None:
    keepers = Keepers(tmp_path, "abc")
    await keepers.open()
    await keepers.imported(keepers["a"])
    await keepers["b"].agent.run_once()
    lied, handler = asyncio.Event(), keepers["b"].requests._handlers.stream_handler("blocks")

    def lie(data: bytes) -> bytes:
        if len(data) <= FRAME:
            return data
        lied.set()
        return b"X" + data[1:]

    async def late(peer: ServerId, body: Any, accept: Accepts) -> None:
        await lied.wait()
        await handler(peer, body, accept)

    spoil(keepers["a"], lie)
    keepers["b"].requests.serve_stream("blocks", late)
    c = keepers["c"].agent
    assert "copied" in await c.run_once()
    keepers.clock.advance(LIED_S - 60)
    await c.run_once()
    (problem,) = c.problems()
    assert "wrong bytes came from a" in problem
    keepers.clock.advance(120)
    await c.run_once()
    assert c.problems() == ()
    assert any("a sent wrong bytes" in text for text in keepers["c"].events("alarm"))
    keepers.close()
