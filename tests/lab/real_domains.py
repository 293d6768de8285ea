"""A desktop's real domain, defined as kmgr does, without a daemon."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt

from kmgr.ids import DesktopId
from kmgr.provision import disks, domainxml
from kmgr.provision.hypervisor import DomainSpec
from tests.lab.hypervisors import plain


def spec_of(folder: Path, desktop: DesktopId, *, generation: int = 1) -> DomainSpec:
    """Return the spec of a small desktop whose files lie in a folder."""
    for part in ("desktops", "run"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return plain(folder, desktop, generation)


@contextlib.contextmanager
def defined(uri: str, folder: Path, desktop: DesktopId, backing: Path) -> Iterator[Any]:
    """Lend a desktop's domain on a fresh clone, powered off; it is gone afterwards."""
    spec = spec_of(folder, desktop)
    disks.make_overlay(Path(spec.disk), backing)
    connection = libvirt.open(uri)
    domain = connection.defineXML(domainxml.render(spec))
    yield domain
    with contextlib.suppress(libvirt.libvirtError):
        domain.destroy()
    with contextlib.suppress(libvirt.libvirtError):
        domain.undefine()
    connection.close()
