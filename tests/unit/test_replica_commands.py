"""Images, versions and holdings as commands: numbers run on, refusals say why, repetition is harmless."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.grid.envelope import Applied, Command, Outcome
from kmgr.grid.store import Store
from kmgr.ids import CommandId, ImageId, ServerId, VersionId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.replica import queries
from tests.lab.outcomes import rejected

A, B = ServerId("srv-a"), ServerId("srv-b")
IMG = ImageId("img-1")
V1, V2 = VersionId("ver-1"), VersionId("ver-2")


class Desk:
    """Applies commands to a fresh state with two servers and one image."""

    def __init__(self, store: Store) -> None:
        self.db = store.writer
        for server in (A, B):
            self.do(
                "server.add", server=server, name=server[4:], grid_address=f"{server}:1", web_address=f"{server}:2",
                version="0.1.0", fingerprint="f",
            )  # fmt: skip
        self.do("image.create", image=IMG, name="Debian 12", notes="")

    def do(self, type: str, **fields: Any) -> Outcome:
        return APPLIERS[type](self.db, Command(type, CommandId("cmd"), 1_000, "anna", fields))

    def add(self, version: VersionId, **changed: Any) -> Outcome:
        plain = {"size_bytes": 1 << 20, "used_bytes": 4096, "block_bytes": 1 << 18, "manifest_hash": version[-1] * 64}
        return self.do(
            "version.add", **{"version": version, "image": IMG, "notes": "", "server": A, **plain, **changed}
        )


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = Store(tmp_path / "state.sqlite", SCHEMAS)
    store.guard()
    yield Desk(store)
    store.close()


def test_versions_are_numbered_from_one_and_held_by_their_importer(desk: Desk) -> None:
    assert desk.add(V1) == Applied({"number": 1})
    assert desk.add(V2) == Applied({"number": 2})
    assert [v.number for v in queries.versions(desk.db, IMG)] == [1, 2]
    assert queries.holders(desk.db, V1) == (A,)


def test_two_images_cannot_have_one_name(desk: Desk) -> None:
    assert "already" in rejected(desk.do("image.create", image="img-2", name="Debian 12", notes=""), "conflict")


@pytest.mark.parametrize("name", ["", "  ", " padded", "x" * 64, "two\nlines"])
def test_an_unreadable_name_is_refused(desk: Desk, name: str) -> None:
    rejected(desk.do("image.create", image="img-2", name=name, notes=""), "refused")


def test_the_same_contents_twice_are_refused_by_number(desk: Desk) -> None:
    desk.add(V1)
    assert "version 1" in rejected(desk.add(V2, manifest_hash="1" * 64), "conflict")


@pytest.mark.parametrize(
    "wrong",
    [{"size_bytes": 0}, {"used_bytes": -1}, {"block_bytes": True}, {"manifest_hash": "XY"}, {"size_bytes": "9"}],
)
def test_numbers_that_cannot_be_are_refused(desk: Desk, wrong: dict[str, Any]) -> None:
    rejected(desk.add(V1, **wrong), "refused")
    assert queries.versions(desk.db) == ()


def test_a_version_needs_its_image_and_its_server(desk: Desk) -> None:
    assert "no image" in rejected(desk.add(V1, image="img-9"), "not_found")
    assert "not in this grid" in rejected(desk.add(V1, server="srv-9"), "not_found")


def test_here_and_gone_may_be_said_twice(desk: Desk) -> None:
    desk.add(V1)
    for _ in range(2):
        assert desk.do("version.here", version=V1, server=B) == Applied()
    assert queries.holders(desk.db, V1) == (A, B)
    for _ in range(2):
        assert desk.do("version.gone", version=V1, server=B) == Applied()
    assert [h.server for h in queries.holdings(desk.db)] == [A]


def test_a_removed_server_holds_nothing(desk: Desk) -> None:
    desk.add(V1)
    desk.do("version.here", version=V1, server=B)
    desk.db.execute("update servers set state = 'removed' where id = ?", [B])
    assert queries.holders(desk.db, V1) == (A,)
    assert queries.holdings(desk.db, B) == ()
    assert "not in this grid" in rejected(desk.do("version.here", version=V1, server=B), "not_found")


def test_images_are_found_by_id_and_by_name(desk: Desk) -> None:
    found = queries.image_by_name(desk.db, "Debian 12")
    assert found is not None
    assert found == queries.image(desk.db, IMG)
    assert queries.images(desk.db) == (found,)
    assert queries.image_by_name(desk.db, "other") is None
    assert queries.version(desk.db, V1) is None
