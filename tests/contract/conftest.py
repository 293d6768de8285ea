"""What the contract of hypervisors is tried on."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.image import tiny
from appliance.lab.node import PrivateLibvirt
from tests.lab.hypervisors import Bench, InMemory, WithLibvirt
from tests.lab.raw_disk import raw_disk


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test guest's disk as a raw file, as a version's file is."""
    return raw_disk(tiny.quick(), tmp_path_factory.mktemp("guest") / "tiny.raw")


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A private libvirtd with QEMU."""
    server = PrivateLibvirt(tmp_path_factory.mktemp("libvirt") / "s", "contract")
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "test-driver", pytest.param("qemu", marks=pytest.mark.libvirt)])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "memory":
        yield InMemory(tmp_path)
        return
    if request.param == "qemu":
        libvirtd = request.getfixturevalue("libvirtd")
        libvirtd.start()
        made = WithLibvirt(tmp_path, libvirtd.uri, backing=request.getfixturevalue("guest"))
    else:
        made = WithLibvirt(tmp_path, "test:///default")
    yield made
    await made.close()


@pytest.fixture
async def qemu(libvirtd: Any, guest: Path, tmp_path: Path) -> AsyncIterator[WithLibvirt]:
    """The real thing with a deadline that a test can wait for."""
    libvirtd.start()
    made = WithLibvirt(tmp_path, libvirtd.uri, backing=guest, deadline_s=2)
    yield made
    libvirtd.start()
    await WithLibvirt.close(made)
