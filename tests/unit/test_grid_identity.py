"""The files of an identity on a disk that runs full: the good one stays, and somebody is told."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmgr.errors import Unavailable
from kmgr.grid import identity
from kmgr.grid.identity import Identity
from kmgr.ids import ServerId
from kmgr.provision import disks

A, B = ServerId("srv-a"), ServerId("srv-b")


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let the system take so many bytes of a file and no more, as a disk that runs full does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_is_told_and_the_good_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "kmgr.toml"
    identity.atomic_write(path, b"good" * 100)
    with room_for(300), pytest.raises(Unavailable, match=r"kmgr\.toml cannot be written: .*Make room"):
        identity.atomic_write(path, b"better" * 100)
    assert path.read_bytes() == b"good" * 100
    assert list(tmp_path.iterdir()) == [path]
    identity.atomic_write(path, b"better" * 100)
    assert path.read_bytes() == b"better" * 100


def test_an_address_that_cannot_be_noted_leaves_a_server_that_can_be_loaded(tmp_path: Path) -> None:
    own = Identity(A, "a", "grid-1", "office", b"key", b"cert", b"ca", b"s" * 32, {B: "192.0.2.1:8440"})
    identity.write(tmp_path, own)
    moved = {B: "192.0.2.77:8440"}
    with room_for(60), pytest.raises(Unavailable):
        identity.remember_peers(tmp_path, own, moved)
    assert identity.load(tmp_path) == own
    assert identity.remember_peers(tmp_path, own, moved).peers == moved


def test_an_overlay_that_does_not_fit_leaves_the_former_one(tmp_path: Path) -> None:
    backing, overlay = tmp_path / "version.raw", tmp_path / "desktop.qcow2"
    backing.write_bytes(bytes(1 << 20))
    disks.make_overlay(overlay, backing)
    before = overlay.read_bytes()
    with room_for(len(before) // 2), pytest.raises(OSError, match="too large"):
        disks.make_overlay(overlay, backing)
    assert overlay.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [overlay, backing]
