"""The domain's XML: whole, against a golden file; its mark, back again."""

import difflib
import os
from dataclasses import fields, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from kmgr.ids import DesktopId
from kmgr.provision.domainxml import domain_name, mac_address, ours, render
from kmgr.provision.hypervisor import DomainSpec
from kmgr.templates.machine import MACHINES, Firmware, Machine, System
from kmgr.templates.policy import Devices

GOLDEN = Path(__file__).parents[1] / "golden" / "domainxml"
PLAIN = DomainSpec(
    desktop=DesktopId("dsk-4k2mzzzzzzzz"),
    generation=3,
    name="office-7",
    grid="grid-1",
    template="office",
    vcpus=2,
    memory_mib=2048,
    disk="/var/lib/kmgr/desktops/dsk-4k2mzzzzzzzz.qcow2",
    display="/var/lib/kmgr/run/dsk-4k2mzzzzzzzz.vnc",
    log="/var/lib/kmgr/desktops/dsk-4k2mzzzzzzzz.log",
    accelerator="tcg",
    network="user",
)
SPECS = {
    "personal": replace(PLAIN, personal=True),
    "tcg-user": PLAIN,
    "kvm-bridge": replace(PLAIN, accelerator="kvm", network="bridge:br0"),
    "tcg-network": replace(PLAIN, network="network:default"),
    "seed-and-devices": replace(PLAIN, seed="/d/dsk.seed.iso", devices=Devices(clipboard=True, sound=True)),
    "installer": replace(PLAIN, installer="/var/lib/kmgr/images/ver-4k2mzzzzzzzz.raw", seed="/d/dsk.seed.iso"),
    "uefi": replace(PLAIN, machine=Machine(Firmware.UEFI), loader="/f/CODE.fd", variables="/d/dsk.nvram.fd"),
    "windows": replace(
        PLAIN,
        accelerator="kvm",
        machine=MACHINES[System.WINDOWS],
        loader="/f/CODE.secboot.fd",
        variables="/d/dsk.nvram.fd",
        installer="/i/ver-win.raw",
        drivers="/i/ver-drivers.raw",
        seed="/d/dsk.seed.iso",
    ),
    "awkward-names": replace(PLAIN, name='a"<b>&c', template="ö ' x", disk="/d/a & b.qcow2"),
}


@pytest.mark.parametrize("name", SPECS)
def test_the_xml_is_the_golden_one(name: str) -> None:
    golden = GOLDEN / f"{name}.xml"
    made = render(SPECS[name])
    if os.environ.get("KMGR_GOLDEN") == "write":
        golden.write_text(made)
    difference = "\n".join(difflib.unified_diff(golden.read_text().splitlines(), made.splitlines(), lineterm=""))
    assert not difference, f"if this is meant, run it with KMGR_GOLDEN=write:\n{difference}"


@pytest.mark.parametrize("name", SPECS)
def test_libvirts_own_schema_accepts_it(name: str) -> None:
    libvirt = pytest.importorskip("libvirt")
    connection = libvirt.open("test:///default")
    connection.defineXMLFlags(render(SPECS[name]), libvirt.VIR_DOMAIN_DEFINE_VALIDATE).undefine()


@pytest.mark.parametrize("name", SPECS)
def test_its_mark_is_read_back(name: str) -> None:
    spec = SPECS[name]
    assert ours(render(spec), grid=spec.grid) == (spec.desktop, spec.generation)


def test_everybody_elses_domains_are_not_ours() -> None:
    assert ours(render(PLAIN), grid="grid-2") is None
    stranger = f"<domain><name>{domain_name(PLAIN.desktop)}</name></domain>"
    assert ours(stranger, grid="grid-1") is None
    other_mark = '<domain><metadata><x:desktop xmlns:x="urn:other" grid="grid-1"/></metadata></domain>'
    assert ours(other_mark, grid="grid-1") is None


@pytest.mark.parametrize(
    ("good", "spoilt"),
    [('generation="3"', 'generation="x"'), ('generation="3"', ""), ('id="dsk-4k2mzzzzzzzz"', 'id=""')],
)
def test_a_mark_that_somebody_spoilt_is_nobodys(good: str, spoilt: str) -> None:
    assert good in render(PLAIN)
    assert ours(render(PLAIN).replace(good, spoilt), grid="grid-1") is None


@pytest.mark.parametrize("field", [f.name for f in fields(DomainSpec)])
def test_every_part_of_the_spec_matters(field: str) -> None:
    other: object = {
        "generation": 4,
        "vcpus": 3,
        "memory_mib": 1024,
        "accelerator": "kvm",
        "network": "bridge:br1",
        "disk": "/x",
        "display": "/x",
        "log": "/x",
        "devices": Devices(sound=True),
        "machine": Machine(Firmware.SECURE),
    }.get(field, "another")
    base = SPECS["uefi"]
    assert render(replace(base, **{field: other})) != render(base)  # type: ignore[arg-type]


def test_a_network_address_is_steady_valid_and_changes_with_the_generation() -> None:
    first = mac_address(PLAIN.desktop, 1)
    assert first == mac_address(PLAIN.desktop, 1)
    assert first != mac_address(PLAIN.desktop, 2)
    assert first.startswith("52:54:00:")
    assert len(bytes.fromhex(first.replace(":", ""))) == 6


def test_no_screen_is_ever_on_the_network() -> None:
    for spec in SPECS.values():
        graphics = ET.fromstring(render(spec)).findall("devices/graphics")  # noqa: S314 - our own
        assert [[listen.get("type") for listen in screen] for screen in graphics] == [["socket"]]
        assert all(screen.get("port") is None for screen in graphics)


def test_keys_reach_a_guest_without_a_usb_driver() -> None:
    # QEMU sends keys to a USB keyboard as soon as there is one, whether or not the guest drives it.
    inputs = ET.fromstring(render(PLAIN)).findall("devices/input")  # noqa: S314 - our own
    assert [(one.get("type"), one.get("bus")) for one in inputs] == [("tablet", "usb")]
