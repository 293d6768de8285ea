"""What real libvirt and QEMU refuse, in their own words, is recognised: each has a name, a cause and a cure."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.lab.node import PrivateLibvirt
from kmgr.errors import Refused
from kmgr.ids import DesktopId
from kmgr.provision import disks
from kmgr.provision.causes import Trouble, recognise
from kmgr.provision.hypervisor import DomainSpec, Hypervisor
from kmgr.provision.libvirt_driver import connect
from tests.lab.real_domains import spec_of

libvirt = pytest.importorskip("libvirt")
pytestmark = pytest.mark.libvirt

D1, WELL = DesktopId("dsk-1"), DesktopId("dsk-well")


@pytest.fixture(scope="module")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateLibvirt]:
    server = PrivateLibvirt(tmp_path_factory.mktemp("libvirt") / "s", "refusals")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def it(libvirtd: PrivateLibvirt) -> AsyncIterator[Hypervisor]:
    made = connect(libvirtd.uri, grid="grid-1", deadline_s=20)
    yield made
    for desktop in (D1, WELL):
        await made.remove(desktop)
    await made.close()


def whole(folder: Path, desktop: DesktopId = D1) -> DomainSpec:
    """Return a spec with its disk on an empty golden image."""
    spec = spec_of(folder, desktop)
    image = folder / "ver-1.raw"
    image.write_bytes(bytes(1 << 20))
    disks.make_overlay(Path(spec.disk), image)
    return spec


async def refused(it: Hypervisor, spec: DomainSpec, meanwhile: Callable[[], object] = lambda: None) -> Trouble:
    """Return what the refusal to define and start it is a case of."""
    with pytest.raises(Refused) as refusal:
        await it.define(spec)
        meanwhile()
        await it.start(spec.desktop)
    return recognise("start", refusal.value.message)


@pytest.mark.parametrize(
    ("changed", "trouble"),
    [
        ({"network": "bridge:br-none"}, Trouble.NO_NETWORK),
        ({"network": "network:none"}, Trouble.NO_NETWORK),
        ({"memory_mib": 50_000_000}, Trouble.NO_MEMORY),
        ({"vcpus": 5_000}, Trouble.TOO_LARGE),
    ],
)
async def test_a_shape_or_network_that_the_server_has_not(
    it: Hypervisor, tmp_path: Path, changed: dict[str, object], trouble: Trouble
) -> None:
    assert await refused(it, replace(whole(tmp_path), **changed)) is trouble  # type: ignore[arg-type]


async def test_a_disk_that_was_deleted_or_spoilt_and_a_golden_image_that_is_gone(
    it: Hypervisor, tmp_path: Path
) -> None:
    spec = whole(tmp_path)
    disk = Path(spec.disk)
    assert await refused(it, spec, disk.unlink) is Trouble.NO_DISK
    disk.write_bytes(b"x" * 4096)  # noqa: ASYNC240 - a page
    assert await refused(it, spec) is Trouble.BAD_DISK
    spec = whole(tmp_path)
    assert await refused(it, spec, (tmp_path / "ver-1.raw").unlink) is Trouble.NO_IMAGE


async def test_a_processor_without_what_is_asked_for(libvirtd: PrivateLibvirt) -> None:
    connection = libvirt.open(libvirtd.uri)
    cpu = (
        "<cpu mode='custom' match='exact' check='full'><model fallback='forbid'>Skylake-Server</model>"
        "<feature policy='require' name='svm'/></cpu>"
    )
    xml = f"<domain type='qemu'><name>x</name><memory>65536</memory><os><type>hvm</type></os>{cpu}</domain>"
    with pytest.raises(libvirt.libvirtError) as refusal:
        connection.createXML(xml)
    connection.close()
    assert recognise("start", refusal.value.get_error_message()) is Trouble.NO_CPU


async def test_kvm_where_there_is_none(libvirtd: PrivateLibvirt, it: Hypervisor, tmp_path: Path) -> None:
    connection = libvirt.open(libvirtd.uri)
    capable = "domain type='kvm'" in connection.getCapabilities()
    connection.close()
    if capable:
        pytest.skip("libvirt has KVM here")
    assert await refused(it, replace(whole(tmp_path), accelerator="kvm")) is Trouble.NO_KVM


async def test_others_are_not_affected(it: Hypervisor, tmp_path: Path) -> None:
    well = whole(tmp_path, WELL)
    await it.define(well)
    await it.start(WELL)
    assert await refused(it, replace(whole(tmp_path), network="bridge:br-none")) is Trouble.NO_NETWORK
    states = {status.desktop: str(status.state) for status in await it.domains()}
    assert states == {D1: "off", WELL: "running"}
