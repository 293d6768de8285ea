"""A copy cut off anywhere is its former point or its new one; an overlay made of it says what was put in."""

import hashlib
import shutil
import struct
import tempfile
from array import array
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmgr.errors import KmgrError
from kmgr.ids import DesktopId, VersionId
from kmgr.replica import mirror_index, qcow2
from kmgr.replica.grains import ABSENT, GRAIN, ZERO, GrainMap, GrainSet, Slots, grains_in
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.mirror_copy import Copy
from kmgr.replica.mirror_state import Identity, State, grains_of
from kmgr.replica.overlay_file import OverlayFile

COUNT = 40
IDENTITY = Identity(DesktopId("dsk-1"), 1, VersionId("ver-1"), "hash", COUNT * GRAIN - 512)

# A grain's new contents: a byte to fill it with; 0 makes it zeros.
changes = st.dictionaries(st.integers(0, COUNT - 1), st.integers(0, 255), max_size=12)
cycles = st.lists(st.tuples(changes, st.sampled_from(["whole", "changes", "broken", "broken and saved"])), max_size=6)


def state(number: int) -> State:
    return State(CopyPoint(DesktopId("dsk-1"), 1, number, 0, False, False), f"kmgr-{number}", "")


def data_of(copy: Copy, grain: int, fill: int) -> bytes:
    return bytes([fill]) * copy.length(grain)


def put(copy: Copy, change: dict[int, int]) -> GrainSet:
    """Bring one cycle's grains, as a receiver does; not yet a point."""
    offered = GrainSet(grains_of(copy.identity))
    for grain, fill in sorted(change.items()):
        offered.add(grain)
        if not fill:
            copy.zero(grain)
        else:
            data = data_of(copy, grain, fill)
            if copy.digest(grain, read=False) != hashlib.sha256(data).digest():
                copy.write(grain, data, hashlib.sha256(data).digest())
    return offered


def said(copy: Copy) -> dict[int, int]:
    """What a copy's last point says, read from its disk, through the overlay that it would become."""
    with OverlayFile(copy.make_overlay(Path("/base.raw"))) as overlay:
        found = {grain: overlay.read(grain) for grain in overlay.allocated()}
    assert all(data is not None and len(set(data)) <= 1 for data in found.values())
    return {grain: data[0] if data else 0 for grain, data in found.items()}


def play(folder: Path, script: list[tuple[dict[int, int], str]]) -> tuple[Copy, dict[int, int], int]:
    """Play cycles into a new copy; returns it with what its last point must say, and that point's number."""
    copy, last = Copy.created(folder, IDENTITY), 0
    model: dict[int, int] = {}
    copy.commit(state(0), offered=GrainSet(COUNT), everything=True)
    for number, (change, how) in enumerate(script, 1):
        offered = put(copy, change)
        if how.startswith("broken"):
            if how.endswith("saved"):
                copy.save()
            copy.close()
            copy = Copy.opened(folder)
            continue
        copy.commit(state(number), offered=offered, everything=how == "whole")
        model, last = change if how == "whole" else model | change, number
    return copy, model, last


def killed(copy: Copy, offered: GrainSet, number: int, cut: Callable[[int, int], int]) -> tuple[Path, bool]:
    """Commit, and return the folder as a kill would leave it that lets the index grow only up to a byte.

    Nothing is given back before the frame is on the disk: the other files are as they were before.
    """
    folder, left = copy.folder, copy.folder.with_name("left")
    shutil.copytree(folder, left)
    before = (folder / "index").stat().st_size
    copy.commit(state(number), offered=offered, everything=False)
    copy.close()
    data = (folder / "index").read_bytes()
    at = cut(before, len(data))
    (left / "index").write_bytes(data[:at])
    return left, at == len(data)


@given(cycles)
@settings(max_examples=25)
def test_a_copy_says_what_its_complete_cycles_brought(script: list[tuple[dict[int, int], str]]) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        copy, model, last = play(Path(tmp) / "copy", script)
        copy.close()
        again = Copy.opened(Path(tmp) / "copy")
        assert again.state == state(last)
        assert again.wrong_grains() == []
        assert said(again) == model
        again.close()


@given(cycles, changes, st.data())
@settings(max_examples=25)
def test_a_cycle_cut_off_at_any_byte_of_its_frame_leaves_the_former_point(
    script: list[tuple[dict[int, int], str]], change: dict[int, int], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "copy"
        copy, model, last = play(folder, script)
        left, whole = killed(
            copy, put(copy, change), 99, lambda before, after: data.draw(st.integers(before, after), label="cut")
        )
        again = Copy.opened(left)
        assert again.state == state(99 if whole else last)
        assert said(again) == (model | change if whole else model)
        again.close()


@given(cycles, changes, changes)
@settings(max_examples=20)
def test_after_a_cut_the_next_cycle_makes_it_right(
    script: list[tuple[dict[int, int], str]], lost: dict[int, int], change: dict[int, int]
) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "copy"
        copy, model, _ = play(folder, script)
        folder, _ = killed(copy, put(copy, lost), 98, lambda before, after: (before + after) // 2)
        again = Copy.opened(folder)
        again.commit(state(99), offered=put(again, lost | change), everything=False)
        again.close()
        again = Copy.opened(folder)
        assert again.state == state(99)
        assert said(again) == model | lost | change
        assert again.wrong_grains() == []
        again.close()


@given(cycles, changes, changes)
@settings(max_examples=20)
def test_notes_of_a_cycle_that_outlive_its_point_do_no_harm(
    script: list[tuple[dict[int, int], str]], change: dict[int, int], later: dict[int, int]
) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "copy"
        copy, model, _ = play(folder, script)
        offered = put(copy, change)
        copy.save()
        left = (folder / "pending").read_bytes() if (folder / "pending").exists() else b""
        copy.commit(state(98), offered=offered, everything=False)
        copy.close()
        (folder / "pending").write_bytes(left)  # as if killed before it was removed
        again = Copy.opened(folder)
        again.commit(state(99), offered=put(again, later), everything=False)
        again.commit(state(100), offered=put(again, {0: 7, 1: 8, 2: 9}), everything=False)
        assert said(again) == model | change | later | {0: 7, 1: 8, 2: 9}
        assert again.wrong_grains() == []
        again.close()


@given(
    st.lists(st.tuples(st.text(max_size=5), st.lists(st.integers(0, ZERO), max_size=8)), max_size=4),
    st.integers(0, 2000),
    st.binary(max_size=20),
)
def test_frames_are_read_up_to_the_first_broken_byte(
    written: list[tuple[str, list[int]]], at: int, other: bytes
) -> None:
    spelled = [
        mirror_index.spell({"name": name}, array("I", pairs[: len(pairs) // 2 * 2])) for name, pairs in written
    ]
    data = b"".join(spelled)
    assert [frame.head["name"] for frame in mirror_index.frames(data)] == [name for name, _ in written]
    assert b"".join(mirror_index.spell(frame.head, frame.pairs) for frame in mirror_index.frames(data)) == data
    spoilt = data[:at] + other + data[at + len(other) :]
    read = [frame.end for frame in mirror_index.frames(spoilt)]
    ends = [sum(map(len, spelled[: n + 1])) for n in range(len(spelled))]
    untouched = [end for end in ends if end <= at]
    assert read[: len(untouched)] == untouched
    if spoilt[: len(data)] != data:
        assert len(read) < len(ends) + (len(spoilt) > len(data))


@given(
    st.dictionaries(st.integers(0, 40_000), st.booleans(), max_size=60),
    st.integers(0, 40),
    st.text("ab/", max_size=40),
)
@settings(max_examples=20)
def test_an_overlay_made_of_places_reads_back_as_those_places(
    places: dict[int, bool], holes: int, backing: str
) -> None:
    slots = Slots()
    for _ in range(holes):
        slots.take()
    wanted = {grain: slots.take() if data else ZERO for grain, data in sorted(places.items())}
    for slot in range(1, holes, 2):
        slots.free(slot)
    size = 40_001 * GRAIN
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "disk"
        with path.open("wb") as file:
            for slot in wanted.values():
                if slot != ZERO:
                    file.seek(slot * GRAIN)
                    file.write(slot.to_bytes(4) * (GRAIN // 4))
            for at, data in qcow2.tables(
                size, backing.encode(), places=wanted.items(), taken=slots.taken, end=slots.end()
            ):
                file.seek(at * GRAIN)
                file.write(data)
        with OverlayFile(path) as overlay:
            assert overlay.header.backing == backing
            assert overlay.header.size_bytes == size
            assert list(overlay.allocated()) == sorted(wanted)
            for grain, slot in wanted.items():
                assert overlay.read(grain) == (b"" if slot == ZERO else slot.to_bytes(4) * (GRAIN // 4))


NUMBERS = (0, 1, 24, 65_536, 1 << 31, (1 << 32) - 1, 1 << 62, 1 << 63, (1 << 64) - 1)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from((">I", ">Q")), st.sampled_from(NUMBERS)), max_size=4),
    st.booleans(),
)
@example([(36, ">I", (1 << 32) - 1)], False)
@example([(40, ">Q", (1 << 64) - 1)], False)
@example([(24, ">Q", 0)], False)
@example([(24, ">Q", 1 << 63), (36, ">I", (1 << 32) - 1)], False)
def test_a_header_that_rotted_takes_no_more_than_memory_and_ends_in_words(
    changes: list[tuple[int, str, int]], bitmaps: bool
) -> None:
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "disk"
        with path.open("wb") as file:
            places = [(3, 1), (9000, ZERO)]
            for at, data in qcow2.tables(
                40_001 * GRAIN, b"/base", places=places, taken=lambda slot: slot == 1, end=2
            ):
                file.seek(at * GRAIN)
                file.write(data)
        header = bytearray(path.read_bytes()[:GRAIN])
        if bitmaps:
            header[88:96] = struct.pack(">Q", 1)
            header[104:136] = struct.pack(">IIIIQQ", 0x23852875, 24, 1, 0, 64, GRAIN)
        for at, kind, number in changes:
            struct.pack_into(kind, header, at, number & (0xFFFFFFFF if kind == ">I" else (1 << 64) - 1))
        with path.open("r+b") as file:
            file.write(header)
        try:
            with OverlayFile(path) as overlay:
                assert overlay.header.first_level[1] <= 1 << 22
                for grain in islice(overlay.allocated(), 100):
                    overlay.read(grain)
                for bitmap in overlay.bitmaps():
                    assert len(list(islice(overlay.dirty(bitmap), 100))) <= 100
        except (KmgrError, OSError):
            return


@given(
    st.lists(st.tuples(st.integers(0, 20 * GRAIN), st.integers(0, 3 * GRAIN)), max_size=8), st.integers(1, 22 * GRAIN)
)
def test_extents_touch_their_grains_once_and_in_order(extents: list[tuple[int, int]], size: int) -> None:
    extents.sort()
    got = list(grains_in(extents, size_bytes=size))
    wanted = {at // GRAIN for start, length in extents for at in range(start, min(start + length, size), 512)}
    wanted |= {
        (min(start + length, size) - 1) // GRAIN for start, length in extents if min(start + length, size) > start
    }
    assert got == sorted(wanted)


@given(st.dictionaries(st.integers(0, 100_000), st.integers(1, ZERO), max_size=30))
def test_a_map_gives_back_what_was_set(places: dict[int, int]) -> None:
    known = GrainMap()
    for grain, place in places.items():
        known.set(grain, place)
    assert dict(known.places()) == places
    assert list(dict(known.places())) == sorted(places)
    assert known.get(100_001) == ABSENT


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, ZERO)), max_size=40))
def test_many_places_at_once_are_the_same_as_one_by_one(pairs: list[tuple[int, int]]) -> None:
    one, other = GrainMap(), GrainMap()
    for grain, place in pairs:
        one.set(grain, place)
    other.learn(array("I", [n for pair in pairs for n in pair]))
    assert list(other.places()) == list(one.places())
    assert list(other.places(20_000)) == [pair for pair in one.places() if pair[0] >= 20_000]
