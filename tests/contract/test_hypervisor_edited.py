"""A domain edited with virsh: noticed by real libvirt's own words, and nothing that libvirt itself writes is."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.lab.node import PrivateLibvirt
from kmgr.ids import DesktopId
from kmgr.provision import disks, domainxml
from kmgr.provision.hypervisor import DomainSpec, DomainState, Hypervisor
from kmgr.provision.libvirt_driver import connect
from kmgr.templates.policy import Devices
from tests.lab.real_domains import spec_of

libvirt = pytest.importorskip("libvirt")
pytestmark = pytest.mark.libvirt

D1 = DesktopId("dsk-1")


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    server = PrivateLibvirt(tmp_path_factory.mktemp("libvirt") / "s", "edited")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def it(libvirtd: PrivateLibvirt) -> AsyncIterator[Hypervisor]:
    made = connect(libvirtd.uri, grid="grid-1", deadline_s=10)
    yield made
    await made.remove(D1)
    await made.close()


def whole(folder: Path, **changed: object) -> DomainSpec:
    """Return a spec with its disk on an empty image."""
    spec = replace(spec_of(folder, D1), **changed)  # type: ignore[arg-type]
    backing = folder / "empty.raw"
    backing.write_bytes(bytes(1 << 20))
    disks.make_overlay(Path(spec.disk), backing)
    return spec


def change(uri: str, was: str, now: str) -> None:
    """Do what `virsh edit` does."""
    connection = libvirt.open(uri)
    xml = connection.lookupByName(domainxml.domain_name(D1)).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert was in xml, xml
    connection.defineXML(xml.replace(was, now))
    connection.close()


@pytest.mark.parametrize("devices", [Devices(), Devices(clipboard=True, sound=True)])
async def test_what_libvirt_itself_writes_is_no_edit(it: Hypervisor, tmp_path: Path, devices: Devices) -> None:
    spec = whole(tmp_path, devices=devices)
    await it.define(spec)
    for deed in (None, it.start, it.suspend, it.start):
        if deed is not None:
            await deed(D1)
        (status,) = await it.domains()
        assert status.edited == "", deed


async def test_an_edit_is_told_also_while_it_runs_and_undone_by_defining_it_anew(
    it: Hypervisor, libvirtd: PrivateLibvirt, tmp_path: Path
) -> None:
    spec = whole(tmp_path)
    await it.define(spec)
    await it.start(D1)
    change(libvirtd.uri, ">131072</memory>", ">262144</memory>")
    (status,) = await it.domains()
    assert (status.state, status.edited) == (DomainState.RUNNING, "its memory is 262144 KiB instead of 131072")
    await it.define(spec)
    (status,) = await it.domains()
    assert status.edited, "a definition of the same generation is left as it is"
    await it.redefine(spec)
    (status,) = await it.domains()
    assert (status.state, status.edited) == (DomainState.RUNNING, "")


async def test_a_device_of_the_server_that_was_passed_through_is_told(
    it: Hypervisor, libvirtd: PrivateLibvirt, tmp_path: Path
) -> None:
    await it.define(whole(tmp_path))
    share = "<filesystem type='mount'><source dir='/etc'/><target dir='x'/></filesystem></devices>"
    change(libvirtd.uri, "</devices>", share)
    (status,) = await it.domains()
    assert status.edited == "1 devices of the server are passed through instead of 0"
