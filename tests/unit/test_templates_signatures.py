"""What an image is likely to need, by how it begins."""

import pytest

from kmgr.templates.machine import System
from kmgr.templates.signatures import suggested
from tests.lab import boot_iso, efi_iso

GPT = bytes(510) + b"\x55\xaa" + b"EFI PART"


@pytest.mark.parametrize(
    ("head", "system"),
    [
        (boot_iso.image(), System.OTHER),
        (boot_iso.image(bootable=False), System.OTHER),
        (efi_iso.image(), System.OTHER_UEFI),
        (efi_iso.image(publisher="Microsoft Corporation"), System.WINDOWS),
        (GPT, System.OTHER_UEFI),
        (b"\xeb\x63" + GPT[2:], System.OTHER),
        (b"", System.OTHER),
        (b"\x01CD001".rjust(32_774, b"\0"), System.OTHER),
    ],
)
def test_it_is_told_by_how_it_begins(head: bytes, system: System) -> None:
    assert suggested(head) is system


def test_no_beginning_is_too_short_or_too_odd() -> None:
    whole = efi_iso.image()
    for end in range(0, len(whole), 97):
        suggested(whole[:end])
    for at in range(17 * 2048, 20 * 2048, 3):
        suggested(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
