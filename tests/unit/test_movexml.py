"""What a domain keeps when it moves, and what the receiving server says of it by itself."""

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from kmgr.errors import Refused
from kmgr.ids import DesktopId
from kmgr.provision import domainxml, movexml
from kmgr.provision.hypervisor import DomainSpec
from kmgr.provision.migration import Traits, traits_from

SPEC = DomainSpec(
    desktop=DesktopId("dsk-1"),
    generation=3,
    name="office-1",
    grid="grid-1",
    template="office",
    vcpus=2,
    memory_mib=512,
    disk="/here/desktops/dsk-1.qcow2",
    display="/here/run/dsk-1.vnc",
    log="/here/desktops/dsk-1.log",
    accelerator="tcg",
    network="user",
)
KEPT = Traits(
    uuid="00000000-0000-4000-8000-000000000001",
    genid="00000000-0000-4000-8000-000000000002",
    mac="52:54:00:01:02:03",
    machine="pc-q35-7.2",
    emulation="qemu",
    named_memory=False,
)


def arguments(xml: str) -> list[str]:
    return [arg.get("value", "") for arg in ET.fromstring(xml).iter() if arg.tag.endswith("}arg")]  # noqa: S314 - ours


def test_it_keeps_what_its_guest_has_seen_and_is_marked_with_the_new_generation() -> None:
    xml = movexml.settled(SPEC, KEPT, 4)
    assert domainxml.ours(xml, grid="grid-1") == ("dsk-1", 4)
    assert movexml.traits(xml) == KEPT
    assert SPEC.disk in xml
    assert arguments(xml) == []


def test_it_waits_for_its_memory_under_the_name_that_the_other_one_gave_it() -> None:
    assert arguments(movexml.arriving(SPEC, KEPT, 4)) == ["-incoming", "defer"]
    named = arguments(movexml.arriving(SPEC, replace(KEPT, named_memory=True), 4))
    assert f"memory-backend-ram,id={domainxml.RAM},size=512M" in named
    assert named[-2:] == ["-incoming", "defer"]


def test_a_clone_that_was_restored_is_told_by_its_memory() -> None:
    restored = domainxml.render_restored(SPEC, "/warm/ram").replace('machine="q35"', 'machine="pc-q35-7.2"')
    assert movexml.traits(restored).named_memory


def test_servers_that_run_desktops_by_other_means_exchange_none() -> None:
    with pytest.raises(Refused, match="by qemu, the other one by kvm"):
        movexml.arriving(SPEC, replace(KEPT, emulation="kvm"), 4)


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": "x"},
        {"mac": '52:54:00:01:02:03"/><disk'},
        {"machine": "pc-q35-7.2,accel=kvm"},
        {"emulation": "xen"},
        {"named_memory": "yes", "extra": 1},
        {"genid": 7},
    ],
)
def test_another_servers_words_are_taken_only_in_their_forms(change: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        traits_from({**KEPT.to_json(), **change})
    assert traits_from(KEPT.to_json()) == KEPT
