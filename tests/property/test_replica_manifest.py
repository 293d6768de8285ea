"""A manifest has one spelling, says what the bytes were, and a lie in it is refused."""

import random
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.errors import Refused
from kmgr.replica import manifest as m
from kmgr.replica import manifest_file
from kmgr.replica.blocks import together

BLOCK = 1 << 16
HEAD = len(b"kmgr manifest 2\n")


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, dict[int, bytes]]:
    """A disk's size and its blocks that are not zeros (each a short word repeated)."""
    sectors = draw(st.integers(1, 12 * BLOCK // 512))
    size = sectors * 512
    last = -(-size // BLOCK)
    return size, draw(st.dictionaries(st.integers(0, last - 1), st.binary(min_size=1, max_size=4), max_size=12))


def digests(size: int, blocks: dict[int, bytes]) -> list[tuple[int, bytes]]:
    return [(n, m.digest((word * BLOCK)[: min(BLOCK, size - n * BLOCK)])) for n, word in sorted(blocks.items())]


def made(disk: tuple[int, dict[int, bytes]]) -> m.Manifest:
    return m.build(disk[0], digests(*disk), block_bytes=BLOCK)


@given(disks())
def test_what_is_spelled_is_read_back(disk: tuple[int, dict[int, bytes]]) -> None:
    manifest = made(disk)
    data = m.encode(manifest)
    assert m.parse(data) == manifest
    assert m.encode(m.parse(data)) == data
    assert len(data) <= m.most_bytes(manifest.used_bytes, BLOCK)


@given(disks())
def test_every_block_that_is_not_zeros_is_listed_where_it_lies(disk: tuple[int, dict[int, bytes]]) -> None:
    size, blocks = disk
    manifest = made(disk)
    wanted = {n * BLOCK: d for n, d in digests(size, blocks) if blocks[n].strip(b"\0")}
    found = {block.offset: block.digest for k in range(manifest.pieces) for block in manifest.piece(k)}
    assert found == wanted
    assert manifest.used_bytes == sum(block.length for block in manifest.all_blocks())
    assert all(block.offset + block.length <= size for block in manifest.all_blocks())


@given(disks(), st.integers(0, 0xFFFF), st.randoms(use_true_random=False))
def test_some_blocks_of_a_piece_lie_where_the_single_ones_do_and_agree_with_their_bytes_only(
    disk: tuple[int, dict[int, bytes]], wanted: int, chance: random.Random
) -> None:
    # Beyond it so many blocks that there are several pieces, with holes between.
    size, beyond = 60 * BLOCK - 512, 12 + 2 * chance.randrange(4)
    blocks = disk[1] | {n: b"x" for n in range(beyond, 60) if n % 7}
    manifest = made((size, blocks))
    assert manifest.pieces >= 2
    for piece in range(manifest.pieces):
        some = manifest.some(piece, wanted)
        assert manifest.stretches(piece, wanted) == together(some)
        words = [blocks[block.offset // BLOCK] for block in some]
        right = b"".join((word * BLOCK)[: block.length] for word, block in zip(words, some, strict=True))
        assert manifest.agrees(piece, wanted, right)
        if right:
            wrong = bytearray(right)
            wrong[chance.randrange(len(right))] ^= 1
            assert not manifest.agrees(piece, wanted, wrong)
            assert not manifest.agrees(piece, wanted, right[:-1])
        assert not manifest.agrees(piece, wanted, right + b"x")


@given(disks(), st.data())
def test_a_changed_byte_is_refused_or_shows_in_the_hash(
    disk: tuple[int, dict[int, bytes]], data: st.DataObject
) -> None:
    good = m.encode(made(disk))
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= data.draw(st.integers(1, 255))
    assert m.manifest_hash(bytes(bad)) != m.manifest_hash(good)
    try:
        again = m.parse(bytes(bad))
    except Refused:
        return
    assert m.encode(again) == bytes(bad)


@given(disks(), st.data())
def test_a_cut_or_lengthened_manifest_is_refused(disk: tuple[int, dict[int, bytes]], data: st.DataObject) -> None:
    good = m.encode(made(disk))
    with pytest.raises(Refused):
        m.parse(good[: data.draw(st.integers(0, len(good) - 1))])
    with pytest.raises(Refused):
        m.parse(good + b"\0")


@given(st.binary(max_size=200))
def test_rubbish_is_refused(rubbish: bytes) -> None:
    with pytest.raises(Refused):
        m.parse(rubbish)


def spelled(size: int, block: int, runs: list[tuple[int, int]], *, hashes: bytes | None = None) -> bytes:
    count = sum(n for _, n in runs)
    hashes = b"\1" * 32 * count if hashes is None else hashes
    head = struct.pack(">QIQQ", size, block, len(runs), len(hashes) // 32)
    return b"kmgr manifest 2\n" + head + b"".join(struct.pack(">QQ", *run) for run in runs) + hashes


@pytest.mark.parametrize(
    "lie",
    [
        spelled(0, BLOCK, []),
        spelled(513, BLOCK, []),
        spelled(32 << 40, BLOCK, []),
        spelled(1 << 20, 4096, []),
        spelled(1 << 20, BLOCK + 1, []),
        spelled(1 << 20, BLOCK, [(0, 0)]),
        spelled(1 << 20, BLOCK, [(16, 1)]),
        spelled(1 << 20, BLOCK, [(3, 1), (1, 1)]),
        spelled(1 << 20, BLOCK, [(1, 1), (2, 1)]),
        spelled(1 << 20, BLOCK, [(1, 2), (2, 1)]),
        spelled(1 << 20, BLOCK, [(1, 2)], hashes=b"\1" * 32),
        spelled(1 << 20, BLOCK, [(1, 1)], hashes=m.zero_digest(BLOCK)),
        spelled(1 << 20, BLOCK, [(1, 1)])[:HEAD] + struct.pack(">QIQQ", 1 << 20, BLOCK, 1 << 60, 1 << 60),
    ],
)
def test_counts_and_places_that_cannot_be_are_refused(lie: bytes) -> None:
    with pytest.raises(Refused):
        m.parse(lie)


def test_an_empty_disk_has_an_empty_manifest() -> None:
    manifest = m.build(1 << 20, [])
    assert (manifest.blocks, manifest.pieces, manifest.used_bytes) == (0, 0, 0)
    assert m.parse(m.encode(manifest)) == manifest


@given(disks(), st.integers(0, 12))
def test_hashes_that_stay_in_the_file_answer_as_those_in_memory_do(
    disk: tuple[int, dict[int, bytes]], piece: int
) -> None:
    manifest = made(disk)
    with tempfile.NamedTemporaryFile() as file:
        file.write(m.encode(manifest))
        file.flush()
        kept = manifest_file.opened(Path(file.name))
        assert manifest_file.name_of(Path(file.name)) == m.manifest_hash(m.encode(manifest))
        assert (kept.size_bytes, kept.block_bytes, kept.runs) == (
            manifest.size_bytes,
            manifest.block_bytes,
            manifest.runs,
        )
        assert list(kept.all_blocks()) == list(manifest.all_blocks())
        assert kept.piece(piece) == manifest.piece(piece)
        assert m.encode(kept) == m.encode(manifest)


def test_a_manifest_of_another_release_is_refused_by_its_format() -> None:
    older = b"kmgr manifest 1\n" + m.encode(m.build(1 << 20, []))[HEAD:]
    with pytest.raises(Refused, match="format 1, of another release of kmgr; this one reads format 2") as caught:
        m.parse(older)
    assert caught.value.code == "manifest_format"


def test_the_hash_is_blake3() -> None:
    # The test vectors of its authors: no bytes, and 0, 1, 2, … 250, 0, 1 … of 1025 bytes.
    assert m.digest(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    counting = bytes(k % 251 for k in range(1025))
    assert m.digest(counting).hex() == "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"
