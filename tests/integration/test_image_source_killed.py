"""Servers in processes of their own, on slow links: a kill -9 in the middle of a copy costs next to nothing."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmgr.ids import VersionId
from tests.bench.image_grid import MIB, ImageGrid, distributing, picture
from tests.bench.image_parts import received
from tests.lab.links import Links

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("tc") is None, reason="needs root and tc for network namespaces"
)
V1 = VersionId("ver-1")
SIZE = 96 * MIB
RECEIVERS = (1, 2, 3)
TWICE = 0.02


@pytest.fixture
def links() -> Iterator[Links]:
    with Links(4, mbit=200) as made:
        yield made


def share(grid: ImageGrid) -> float:
    told: list[tuple[int, int]] = [grid.processes[place].order(progress=1)["progress"] for place in RECEIVERS]
    return sum(here for here, _ in told) / sum(of for _, of in told)


def half_done(grid: ImageGrid) -> None:
    grid.go(RECEIVERS)
    while share(grid) < 0.5:
        time.sleep(0.05)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_server_comes_back_and_nothing_verified_is_sent_again(
    victim: int, links: Links, tmp_path: Path
) -> None:
    picture(tmp_path / "disk", SIZE)
    with distributing(links, tmp_path / "grid", tmp_path / "disk", RECEIVERS) as grid:
        # What headers of TCP and TLS, the manifest and news add is measured, so that the rest came twice.
        plain = grid.copy(RECEIVERS[:1]).received[1]
        grid.processes[1].kill()
        grid.forget(1)
        grid.begin(1)
        grid.ready(1)
        before = sum(received(links, place) for place in RECEIVERS)
        half_done(grid)
        grid.processes[victim].kill()
        grid.begin(victim)
        grid.ready(victim)
        if victim:
            grid.processes[victim].order(go=1)
        ended = [grid.processes[place].done() for place in RECEIVERS]
        assert not any(end["problems"] for end in ended), (ended, grid.words())
        assert all(grid.same(place, V1) for place in RECEIVERS)
        came = sum(received(links, place) for place in RECEIVERS) - before
        assert came <= len(RECEIVERS) * plain * (1 + TWICE)


def test_the_others_finish_among_themselves_if_the_source_is_gone_for_good_after_giving_all_away(
    links: Links, tmp_path: Path
) -> None:
    picture(tmp_path / "disk", SIZE)
    with distributing(links, tmp_path / "grid", tmp_path / "disk", RECEIVERS) as grid:
        grid.go(RECEIVERS[:1])
        assert not grid.processes[1].done()["problems"]
        grid.go(RECEIVERS[1:])
        while not any(grid.processes[place].order(progress=1)["progress"][0] for place in RECEIVERS[1:]):
            time.sleep(0.05)
        grid.processes[0].kill()
        ended = [grid.processes[place].done() for place in RECEIVERS[1:]]
        del grid.processes[0]
        assert not any(end["problems"] for end in ended), (ended, grid.words())
        assert all(grid.same(place, V1) for place in RECEIVERS)


def test_three_that_have_different_halves_finish_among_themselves_when_the_source_is_killed(
    links: Links, tmp_path: Path
) -> None:
    picture(tmp_path / "disk", SIZE)
    with distributing(links, tmp_path / "grid", tmp_path / "disk", RECEIVERS) as grid:
        halves = {place: half_here(grid, place) for place in RECEIVERS}
        assert len(set.union(*halves.values())) == SIZE // MIB
        assert all(len(half) == SIZE // MIB // 2 for half in halves.values())
        assert not set.intersection(*halves.values())
        grid.go(RECEIVERS)
        # Each has found out what it has, and the first new piece is there.
        while share(grid) <= 0.5:
            time.sleep(0.02)
        grid.processes[0].kill()
        assert share(grid) < 0.8
        ended = [grid.processes[place].done() for place in RECEIVERS]
        del grid.processes[0]
        assert not any(end["problems"] for end in ended), (ended, grid.words())
        assert all(grid.same(place, V1) for place in RECEIVERS)


def half_here(grid: ImageGrid, place: int) -> set[int]:
    """Leave on a receiver's disk what a copy that was broken off half-way leaves: of every six pieces three."""
    source, images = grid.images(0), grid.images(place)
    images.save_manifest(V1, source.side(V1, "manifest").read_bytes())
    first = 2 * (place - 1)
    half = {piece for piece in range(SIZE // MIB) if (piece - first) % 6 < 3}
    with source.path(V1).open("rb") as whole, images.side(V1, "part").open("wb") as part:
        part.truncate(SIZE)
        for piece in half:
            whole.seek(piece * MIB)
            part.seek(piece * MIB)
            part.write(whole.read(MIB))
    return half
