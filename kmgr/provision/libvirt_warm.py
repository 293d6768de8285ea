"""Saving a domain's memory, and domains restored from it, in two ways.

*Shared*: the saved domain's memory is a file (`ram`), what else it is made of a
few MB (`state`). Every restored domain maps that file copy-on-write, so what
they never change exists once on this server, and nothing is read to start one.
libvirt offers no such thing: the file is given to QEMU on its command line, the
state goes through QEMU's monitor as an open file, past libvirt, which sees a
domain that is started paused and let go on.

*Plain*: libvirt saves the domain (`memory`) and restores others from it. It
refuses another name, machine id and network address than the saved one's, so
the description at the head of the stream is replaced on the way, through a FIFO.
It works wherever libvirt does and costs each domain memory of its own.

Called on a thread: all of it blocks. Only `libvirt_driver` may use it.
"""

import contextlib
import os
import struct
import threading
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree as ET

from kmgr.errors import Refused
from kmgr.provision import disks, domainxml
from kmgr.provision.hypervisor import DomainSpec
from kmgr.provision.libvirt_monitor import ask, lend, soon

try:
    import libvirt
except ImportError:  # a server without libvirt still belongs to the grid
    libvirt = None

RAM, STATE, MEMORY = "ram", "state", "memory"
# The name under which QEMU has the file that the state goes to or comes from.
_FILE = "kmgr-state"
_LOAD_S = 120.0
_SAVE_S = 300.0
# The head of what virDomainSave writes: magic, version, length of the description, was it running, compression,
# where the cookie begins, unused words.
_HEAD = struct.Struct("<16sIIIII14I")
_MAGIC, _VERSION = b"LibvirtQemudSave", 2
_LONGEST_HEAD = 16 << 20
_PIECE = 1 << 20
_SHARING = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


def save(domain: Any, folder: str) -> None:
    """Halt the domain and save its memory into the folder, synced; it does not run afterwards."""
    into = Path(folder)
    if (into / RAM).exists():
        _save_shared(domain, into)
    else:
        domain.save(str(into / MEMORY))
        disks.sync(into / MEMORY)


def restore(connection: Any, spec: DomainSpec, folder: str) -> None:
    """Start a transient domain from what was saved in the folder, and let it run."""
    held = Path(folder)
    if (held / STATE).exists():
        _restore_shared(connection, spec, held)
    else:
        _restore_plain(connection, spec, held)


def _save_shared(domain: Any, folder: Path) -> None:
    domain.suspend()
    ask(domain, "migrate-set-capabilities", _SHARING)
    with (folder / STATE).open("wb") as file:
        lend(domain, _FILE, file.fileno())
        ask(domain, "migrate", {"uri": f"fd:{_FILE}"})
        soon(lambda: _migrated(domain), "saving its memory", limit_s=_SAVE_S)
        os.fsync(file.fileno())
    domain.destroy()
    disks.sync(folder / RAM)


def _restore_shared(connection: Any, spec: DomainSpec, folder: Path) -> None:
    domain = connection.createXML(domainxml.render_restored(spec, str(folder / RAM)), libvirt.VIR_DOMAIN_START_PAUSED)
    try:
        ask(domain, "migrate-set-capabilities", _SHARING)
        with (folder / STATE).open("rb") as file:
            lend(domain, _FILE, file.fileno())
            ask(domain, "migrate-incoming", {"uri": f"fd:{_FILE}"})
            soon(lambda: _loaded(domain), "loading the saved memory", limit_s=_LOAD_S)
        domain.resume()
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            domain.destroy()
        raise


def _migrated(domain: Any) -> bool:
    told = ask(domain, "query-migrate")
    if told.get("status") == "failed":
        raise Refused(f"QEMU could not save its memory: {told.get('error-desc', 'it does not say why')}")
    return bool(told.get("status") == "completed")


def _loaded(domain: Any) -> bool:
    if ask(domain, "query-status")["status"] != "inmigrate":
        return True
    told = ask(domain, "query-migrate")
    if told.get("status") == "failed":
        raise Refused(f"QEMU could not load the saved memory: {told.get('error-desc', 'it does not say why')}")
    return False


# -- plain -----------------------------------------------------------------------------------------------------------


def _restore_plain(connection: Any, spec: DomainSpec, folder: Path) -> None:
    with (folder / MEMORY).open("rb") as saved:
        head, start = _replaced_head(saved, spec)
        # Beside the display sockets: a folder that libvirt and QEMU reach, on this server's own disk.
        fifo = Path(f"{spec.disk}.fifo")
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo, 0o600)
        ended = threading.Event()
        feeder = threading.Thread(target=_feed, args=(fifo, head, saved, start, ended), daemon=True)
        feeder.start()
        try:
            connection.restore(str(fifo))
        finally:
            ended.set()
            # If libvirt never opened it, this wakes the feeder up.
            with contextlib.suppress(OSError):
                os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
            feeder.join(_LOAD_S)
            fifo.unlink(missing_ok=True)


def _replaced_head(saved: IO[bytes], spec: DomainSpec) -> tuple[bytes, int]:
    """Return the stream's head with another domain's description in it, and where the memory begins."""
    raw = saved.read(_HEAD.size)
    if len(raw) < _HEAD.size:
        raise Refused("the saved memory is too short to be one")
    magic, version, length, *rest = _HEAD.unpack(raw)
    if magic != _MAGIC or version != _VERSION or length > _LONGEST_HEAD:
        raise Refused("the saved memory is not of a form that kmgr knows: another libvirt wrote it")
    text = saved.read(length)
    cookie_at = rest[2]
    cookie = text[cookie_at:].rstrip(b"\0") + b"\0" if cookie_at else b""
    described = renamed(text.partition(b"\0")[0].decode(), spec).encode() + b"\0"
    if len(described) + len(cookie) > length:
        raise Refused("the description of the domain does not fit into the saved memory's head")
    rest[2] = len(described) if cookie else 0
    return _HEAD.pack(magic, version, length, *rest) + (described + cookie).ljust(length, b"\0"), _HEAD.size + length


def renamed(xml: str, spec: DomainSpec) -> str:
    """Return a saved domain's description as another one's: same devices, its own names, files and addresses."""
    root, other = ET.fromstring(xml), ET.fromstring(domainxml.render(spec))  # noqa: S314 - libvirt's and our own
    for path in _OWN:
        for place, own in zip(root.findall(path), other.findall(path), strict=True):
            place.attrib.update(own.attrib)
            place.text = own.text
            if len(own):
                place[:] = list(own)
    # libvirt writes these at one or both of two places.
    for place in root.findall("devices/graphics"):
        for told in (place, *place.findall("listen")):
            if "socket" in told.attrib:
                told.set("socket", spec.display)
    for place in (*root.findall("devices/serial/source"), *root.findall("devices/console/source")):
        place.set("path", spec.log)
    return ET.tostring(root, encoding="unicode")


# What two domains of one template differ in.
_OWN = ("name", "uuid", "genid", "title", "metadata", "devices/disk/source", "devices/interface/mac")


def _feed(fifo: Path, head: bytes, saved: IO[bytes], start: int, ended: threading.Event) -> None:
    with contextlib.suppress(OSError):  # libvirt gave up: it says why itself
        descriptor = os.open(fifo, os.O_WRONLY)
        try:
            if ended.is_set():
                return
            view = memoryview(head)
            while view:
                view = view[os.write(descriptor, view) :]
            os.lseek(saved.fileno(), start, os.SEEK_SET)
            while os.splice(saved.fileno(), descriptor, _PIECE):
                pass
        finally:
            os.close(descriptor)
