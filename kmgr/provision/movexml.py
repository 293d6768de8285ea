"""The domain of a desktop that arrives from another server while it runs. Pure.

It is this server's own description of it; only what the guest has seen of its
machine already stays as it was (`Traits`).
"""

from xml.etree import ElementTree as ET

from kmgr.errors import Refused
from kmgr.provision import domainxml
from kmgr.provision.hypervisor import DomainSpec
from kmgr.provision.migration import Traits, traits_from


def traits(xml: str) -> Traits:
    """Return what a running domain must keep, of its XML as it runs."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own output
    machine, mac = root.find("os/type"), root.find("devices/interface/mac")
    if machine is None or mac is None:
        raise Refused("this domain was changed by hand: it has no network card or machine of kmgr's")
    if root.find("devices/tpm") is not None:
        raise Refused("it has a TPM, which stays on its server: it goes on elsewhere once it was shut down")
    return traits_from(
        {
            "uuid": root.findtext("uuid", ""),
            "genid": root.findtext("genid", ""),
            "mac": mac.get("address", ""),
            "machine": machine.get("machine", ""),
            "emulation": root.get("type", ""),
            "named_memory": domainxml.has_ram_block(root),
        }
    )


def settled(spec: DomainSpec, kept: Traits, generation: int) -> str:
    """Return the domain as it is defined, for later starts; marked with the generation that it gets."""
    return _written(_root(spec, kept, generation))


def arriving(spec: DomainSpec, kept: Traits, generation: int) -> str:
    """Return the domain as it is started to wait for its memory."""
    root = _root(spec, kept, generation)
    memory = domainxml.ram_block(spec.memory_mib) if kept.named_memory else ()
    domainxml.pass_on(root, *memory, "-incoming", "defer")
    return _written(root)


def _root(spec: DomainSpec, kept: Traits, generation: int) -> ET.Element:
    root = ET.fromstring(domainxml.render(spec))  # noqa: S314 - our own
    if root.get("type") != kept.emulation:
        raise Refused(f"this server runs desktops by {root.get('type')}, the other one by {kept.emulation}")
    for tag, value in (("uuid", kept.uuid), ("genid", kept.genid)):
        found = root.find(tag)
        if found is not None and value:
            found.text = value
        elif found is not None:
            root.remove(found)
    for path, attribute, value in (
        ("os/type", "machine", kept.machine),
        ("devices/interface/mac", "address", kept.mac),
        (f"metadata/{{{domainxml.NAMESPACE}}}desktop", "generation", str(generation)),
    ):
        place = root.find(path)
        if place is None:
            raise Refused(f"this server's description of the desktop has no {path}")
        place.set(attribute, value)
    return root


def _written(root: ET.Element) -> str:
    ET.register_namespace("kmgr", domainxml.NAMESPACE)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
