"""Manifests on their way: large ones cost little memory, and a server that lies about one is passed over."""

import base64
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Unavailable
from kmgr.grid.local import LocalNetwork
from kmgr.ids import DesktopId, ImageId, ServerId
from kmgr.replica import manifest as m
from kmgr.replica import transfer
from kmgr.replica.images import Images
from kmgr.replica.mirror_receive import Copies
from kmgr.replica.mirror_state import Identity
from kmgr.replica.model import Version, VersionState
from tests.lab.sites import V1, Site, disk, three_sites

GIB = 1 << 30
MIB = 1 << 20
A, B = ServerId("srv-a"), ServerId("srv-b")


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[list[Site]]:
    yield from three_sites(tmp_path)


def large(folder: Path, *, gib: int) -> tuple[Images, Version]:
    """Make the manifest of a large version, without its disk: one block in 200 is zeros."""
    chance = random.Random(1)  # noqa: S311 - a picture, not a secret
    numbers = (number for number in range(gib * GIB // m.BLOCK_BYTES) if number % 200)
    manifest = m.build(gib * GIB, ((number, chance.randbytes(32)) for number in numbers))
    data = m.encode(manifest)
    images = Images(folder)
    images.save_manifest(V1, data)
    version = Version(
        V1, ImageId("img-1"), 1, manifest.size_bytes, manifest.used_bytes, manifest.block_bytes,
        m.manifest_hash(data), VersionState.READY, "", 0, "",
    )  # fmt: skip
    return images, version


def bytes_read() -> int:
    """How many bytes this process has asked the kernel to read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar:"))


async def test_the_manifest_of_a_large_image_is_read_about_once_and_never_whole_in_memory(tmp_path: Path) -> None:
    there, version = large(tmp_path / "a", gib=40)
    network, here = LocalNetwork(), Images(tmp_path / "b")
    transfer.Source(network.port(A), there, part_of=lambda _: None)
    length = there.side(V1, "manifest").stat().st_size
    assert length > 19 * MIB
    before = bytes_read()
    tracemalloc.start()
    try:
        manifest = await transfer.fetch_manifest(network.port(B), A, version, here)
        blocks = sum(1 for _ in manifest.all_digests())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert blocks == manifest.blocks
    assert peak < 10 * MIB
    # Once by the source, and here once to look for lies and once for this test; base64 is not read.
    assert bytes_read() - before < 4 * length
    assert here.side(V1, "manifest").read_bytes() == there.side(V1, "manifest").read_bytes()
    assert not here.side(V1, "manifest-new").exists()


def test_a_new_version_of_a_large_image_needs_no_second_list_of_its_blocks(tmp_path: Path) -> None:
    there, version = large(tmp_path / "a", gib=40)
    manifest = m.parse(there.side(V1, "manifest").read_bytes())  # in memory, as an import has it
    images = Images(tmp_path / "b")
    file = images.tmp / "import"
    file.touch()
    tracemalloc.start()
    try:
        name = images.adopt_new(V1, file, manifest)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert name == version.manifest_hash
    assert peak < 4 * MIB
    assert images.side(V1, "manifest").read_bytes() == there.side(V1, "manifest").read_bytes()
    assert images.path(V1).exists()


def test_whether_a_copy_lies_on_the_right_version_is_told_without_its_manifest_in_memory(tmp_path: Path) -> None:
    images, version = large(tmp_path, gib=40)
    images.path(V1).touch()
    copies = Copies(LocalNetwork().port(A), images, clock=ManualClock())
    identity = Identity(DesktopId("dsk-1"), 1, V1, version.manifest_hash, version.size_bytes)
    tracemalloc.start()
    try:
        base = copies._base(identity)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert base == images.path(V1)
    assert peak < 4 * MIB


async def test_a_manifest_cut_under_its_reader_is_named_not_believed(tmp_path: Path) -> None:
    images, _ = large(tmp_path, gib=1)
    manifest = images.manifest(V1)
    os.truncate(images.side(V1, "manifest"), 1000)
    with pytest.raises(Unavailable, match="was changed while it was used"):
        manifest.piece(manifest.pieces - 1)


Answer = Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]


def lie(site: Site, answer: Answer) -> None:
    """Let a server answer something else when it is asked for a manifest."""
    honest = site.requests._handlers._calls["manifest"]

    async def lying(peer: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return answer(body, await honest(peer, body))

    site.requests.serve("manifest", lying)


def spelled(data: bytes) -> str:
    return base64.b64encode(data).decode()


def other_contents(_body: Mapping[str, Any], _told: Mapping[str, Any]) -> Mapping[str, Any]:
    data = m.encode(m.build(1 << 20, [(3, b"x" * 32)]))
    return {"total": len(data), "data": spelled(data)}


def cut(body: Mapping[str, Any], told: Mapping[str, Any]) -> Mapping[str, Any]:
    whole = base64.b64decode(told["data"])
    return {"total": len(whole) - 32, "data": spelled(whole[:-32])} if not body["offset"] else told


LIES: Mapping[str, Answer] = {
    "other contents": other_contents,
    "a length without end": lambda _, told: {**told, "total": 1 << 60},
    "a length that is none": lambda _, told: {**told, "total": "many"},
    "nothing": lambda _, told: {**told, "data": ""},
    "no base64": lambda _, told: {**told, "data": "§"},
    "less than all": cut,
    "twice the same": lambda _, told: {**told, "data": spelled(2 * base64.b64decode(told["data"]))},
}


@pytest.mark.parametrize("what", LIES)
async def test_a_server_that_lies_about_a_manifest_is_refused_named_and_passed_over(
    what: str, sites: list[Site], tmp_path: Path
) -> None:
    a, b, c = sites
    await a.add_version(disk(tmp_path / "disk"))
    await b.agent.run_once()
    lie(a, LIES[what])
    assert "copied" in await c.agent.run_once()
    assert c.raw.read_bytes() == b.raw.read_bytes()
    assert "wrong bytes came from srv-a" in c.agent.problems()[0]
    assert not c.images.side(V1, "manifest-new").exists()


async def test_a_manifest_of_an_older_release_is_named_and_nobody_is_blamed(
    sites: list[Site], tmp_path: Path
) -> None:
    a, b, _ = sites
    await a.add_version(disk(tmp_path / "disk"))
    kept = a.images.side(V1, "manifest")
    kept.write_bytes(kept.read_bytes().replace(b"kmgr manifest 2\n", b"kmgr manifest 1\n", 1))
    assert await b.agent.run_once() == ""
    (problem,) = b.agent.problems()
    assert (
        "the manifest has format 1, of another release of kmgr; this one reads format 2. Bring the disk in" in problem
    )
    assert "wrong bytes" not in problem
    # On its own server as well; its disk is left alone.
    a.start()
    await a.agent.run_once()
    assert a.raw.exists()
    assert a.holders() == ()


async def test_a_manifest_that_contradicts_the_log_is_named_and_not_used(sites: list[Site], tmp_path: Path) -> None:
    a, b, _ = sites
    await a.add_version(disk(tmp_path / "disk"))
    b.grid.store.writer.execute("update versions set size_bytes = size_bytes + 512")
    assert await b.agent.run_once() == ""
    (problem,) = b.agent.problems()
    assert "the manifest of version ver-1 contradicts the log" in problem
    assert not b.raw.exists()
