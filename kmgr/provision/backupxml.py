"""What is said to libvirt and QEMU about backups of a desktop's disk. Pure."""

import json
from collections.abc import Iterator
from xml.etree import ElementTree as ET

PREFIX = "kmgr-"
EXPORT = "vda"
BITMAP = "changed"
QUERY_NODES = '{"execute":"query-named-block-nodes","arguments":{"flat":true}}'


def backup(*, socket: str, scratch: str, since: str) -> str:
    """Return the XML of a pull backup of the one disk, counted from a checkpoint unless `since` is empty."""
    root = ET.Element("domainbackup", mode="pull")
    if since:
        ET.SubElement(root, "incremental").text = since
    ET.SubElement(root, "server", transport="unix", socket=socket)
    disk = ET.SubElement(
        ET.SubElement(root, "disks"), "disk", name="vda", backup="yes", type="file", exportname=EXPORT
    )
    if since:
        disk.set("exportbitmap", BITMAP)
    ET.SubElement(disk, "driver", type="qcow2")
    ET.SubElement(disk, "scratch", file=scratch)
    return ET.tostring(root, encoding="unicode")


def checkpoint(name: str) -> str:
    """Return the XML of a checkpoint of the one disk."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(ET.SubElement(root, "disks"), "disk", name="vda", checkpoint="bitmap")
    return ET.tostring(root, encoding="unicode")


def drop_broken(answer: str, *, keep: str) -> Iterator[str]:
    """Return the commands that drop every bitmap of ours but one, from the answer to `QUERY_NODES`."""
    for node in json.loads(answer).get("return", []):
        for bitmap in node.get("dirty-bitmaps", []):
            name = bitmap.get("name", "")
            if node.get("drv") == "qcow2" and name.startswith(PREFIX) and name != keep and bitmap.get("inconsistent"):
                arguments = {"node": node["node-name"], "name": name}
                yield json.dumps({"execute": "block-dirty-bitmap-remove", "arguments": arguments})
