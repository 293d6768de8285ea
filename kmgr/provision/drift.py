"""Was a domain edited by hand? What it is defined with is written into its own mark, and compared. Pure.

Only what libvirt leaves alone counts, and what the same domain has on every server:
it may have been moved. What a person changed is said in words; the domain is made
as it was when it is started next.
"""

from collections.abc import Mapping
from xml.etree import ElementTree as ET

_UNITS: Mapping[str, int] = {"b": 0, "bytes": 0, "KiB": 10, "k": 10, "MiB": 20, "M": 20, "GiB": 30, "G": 30}
# Devices that a desktop never has: an administrator has passed something through.
_FOREIGN = ("hostdev", "filesystem", "redirdev", "shmem")
_CALLED: Mapping[str, str] = {
    "memory": "its memory is {} KiB instead of {}",
    "vcpus": "it has {} CPUs instead of {}",
    "disks": "its disks are {} instead of {}",
    "cards": "it has {} network cards instead of {}",
    "screens": "it has {} screens instead of {}",
    "foreign": "{} devices of the server are passed through instead of {}",
}


def facts(root: ET.Element) -> str:
    """Return what counts of a domain's XML, as one short text."""
    devices = root.find("devices")
    found = {
        "memory": str(_kib(root.find("memory"))),
        "vcpus": (root.findtext("vcpu") or "").strip(),
        "disks": "+".join(sorted(_file(disk) for disk in _all(devices, "disk"))),
        "cards": str(len(_all(devices, "interface"))),
        "screens": str(len(_all(devices, "graphics"))),
        "foreign": str(sum(len(_all(devices, tag)) for tag in _FOREIGN)),
    }
    return ";".join(f"{name}={value}" for name, value in found.items())


def difference(then: str, now: str) -> str:
    """Say in words what is not as it was, empty if all is."""
    former, present = _parsed(then), _parsed(now)
    told = [
        _CALLED[name].format(present.get(name, "?"), former[name])
        for name in _CALLED
        if name in former and former[name] != present.get(name)
    ]
    return ", ".join(told)


def _parsed(text: str) -> Mapping[str, str]:
    return dict(part.split("=", 1) for part in text.split(";") if "=" in part)


def _all(devices: ET.Element | None, tag: str) -> list[ET.Element]:
    return [] if devices is None else devices.findall(tag)


def _file(disk: ET.Element) -> str:
    source = disk.find("source")
    where = "" if source is None else source.get("file") or source.get("dev") or source.get("name") or "?"
    return where.rpartition("/")[2] or "none"


def _kib(memory: ET.Element | None) -> int:
    if memory is None or not (memory.text or "").strip().isdecimal():
        return 0
    return (int((memory.text or "0").strip()) << _UNITS.get(memory.get("unit", "KiB"), 10)) >> 10
