"""What kind of machine an image is likely to need: by how it begins, by its name while it is not on this server."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from kmgr.ids import VersionId
from kmgr.templates.machine import System
from kmgr.templates.model import ImageKind
from kmgr.templates.signatures import HEAD_BYTES, suggested
from kmgr.web.records import Item
from kmgr.web.services import Services

WORDS = {
    System.WINDOWS: "Windows",
    System.WINDOWS_VIRTIO: "Windows",
    System.OTHER: "",
    System.OTHER_UEFI: "starts by UEFI",
}


def system_of(services: Services, image: Item) -> System:
    """Return what the newest version of an image is likely to be; reads the beginning of a file."""
    version = image["versions"][-1]["id"]
    try:
        return _of_file(services.images.path(VersionId(version)))
    except OSError:  # not here, or not yet
        is_windows = image["kind"] == ImageKind.ISO and "win" in image["name"].lower()
        return System.WINDOWS if is_windows else System.OTHER


def told(services: Services, images: Sequence[Item]) -> dict[str, str]:
    """Return in a word what images are likely to be, by id; nothing of those that need nothing special."""
    found = {one["id"]: WORDS[system_of(services, one)] for one in images if one["versions"]}
    return {image: word for image, word in found.items() if word}


@lru_cache(maxsize=256)
def _of_file(path: Path) -> System:
    with path.open("rb") as file:  # never written again: what is known of it stays true
        return suggested(file.read(HEAD_BYTES))
