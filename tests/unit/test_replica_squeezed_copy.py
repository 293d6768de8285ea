"""Versions of which pieces go compressed: over a slow link they do, and what lies is never kept."""

import asyncio
import filecmp
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmgr.replica import zstd
from kmgr.replica.frames import HEAD, Kind
from tests.lab.sites import FRAME, MIB, Site, disk, hold_back, spoil, three_sites


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[list[Site]]:
    yield from three_sites(tmp_path)


async def test_over_a_slow_link_pieces_go_compressed_and_every_file_is_the_same(
    sites: list[Site], tmp_path: Path
) -> None:
    file = tmp_path / "disk"
    file.write_bytes(
        b"".join(b"%d: programs and words, as disks are full of\n" % n for n in range(400_000))[: 16 * MIB]
    )
    await sites[0].add_version(file)
    await sites[0].do("setting.set", name="image_mbit_s", value=80)
    heads: list[bytes] = []

    def noted(data: bytes) -> bytes:
        if len(data) == HEAD.size:
            heads.append(bytes(data))
        return data

    for site in sites:
        spoil(site, noted)
    said = await asyncio.gather(*(site.agent.run_once() for site in sites))
    assert ["copied" in text for text in said] == [False, True, True]
    for site in sites[1:]:
        assert filecmp.cmp(sites[0].raw, site.raw, shallow=False)
    # How many is for the machine to say: where it is busy, compressing costs more than it saves.
    squeezed = [HEAD.unpack(head)[2] for head in heads if head[0] == Kind.SQUEEZED]
    assert squeezed
    assert max(squeezed) < MIB // 2


@pytest.mark.parametrize("lie", ["a bomb", "not zstd", "other blocks", "nothing"])
async def test_compressed_lies_are_never_kept_and_their_sender_is_named(
    sites: list[Site], tmp_path: Path, lie: str
) -> None:
    await sites[0].add_version(disk(tmp_path / "disk", size=64 * MIB, used=24 * MIB))
    await sites[1].agent.run_once()
    sent = {
        "a bomb": zstd.compress(bytes(64 * MIB)), "not zstd": b"X" * 70_000,
        "other blocks": zstd.compress((b"other words " * MIB)[:MIB]), "nothing": b"",
    }[lie]  # fmt: skip
    lied = asyncio.Event()
    first = [True]

    def squeezed(data: bytes) -> bytes:
        if len(data) == HEAD.size and data[0] == Kind.BLOCKS:
            first[0] = True
            return HEAD.pack(Kind.SQUEEZED, HEAD.unpack(data)[1], len(sent))
        if len(data) <= FRAME:
            return data
        lied.set()
        begins, first[0] = first[0], False
        return sent if begins else b""

    spoil(sites[0], squeezed)
    hold_back(sites[1], lied)
    assert "copied" in await sites[2].agent.run_once()
    assert filecmp.cmp(sites[1].raw, sites[2].raw, shallow=False)
    (problem,) = sites[2].agent.problems()
    assert "wrong bytes came from srv-a" in problem
