"""What a file is, and what an image is likely to need, by how it begins."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.templates.machine import System
from kmgr.templates.signatures import _OTHERS, HEAD_BYTES, recognise, suggested
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


MARKS = {
    "qcow2": (0, b"QFI\xfb"), "vmdk": (0, b"KDMV"), "vdi": (0x40, b"\x7f\x10\xda\xbe"), "vhdx": (0, b"vhdxfile"),
    "iso": (32_768, b"\x01CD001"), "record": (34_816, b"\x00CD001\x01EL TORITO SPECIFICATION"),
    "boot": (510, b"\x55\xaa"),
}  # fmt: skip


def assert_says_what_to_do(text: str) -> None:
    what, _, advice = text.partition(". ")
    assert what.startswith("it is ")
    assert advice[:1].isupper(), text


@pytest.mark.parametrize("head", [mark.ljust(4096, b"\1") for at, mark, *_ in _OTHERS if not at])
def test_what_is_something_else_is_told_what_it_is_and_what_to_do_with_it(head: bytes) -> None:
    found = recognise(head, 1 << 30)
    assert not found.format
    assert_says_what_to_do(found.text)


def test_a_text_is_told_to_be_looked_into() -> None:
    found = recognise(b"<html>You are not logged in</html>" * 200, 6800)
    assert "it is a text file. Choose the disk image itself" in found.text
    assert "look into it" in found.text


@given(
    marks=st.sets(st.sampled_from(sorted(MARKS)), max_size=3),
    fill=st.binary(max_size=600),
    at=st.integers(0, 36_000),
    length=st.one_of(
        st.integers(0, 1200), st.integers(32_768, 32_860), st.integers(32_760, 36_900), st.just(HEAD_BYTES)
    ),
    more=st.integers(0, 1 << 50),
)
def test_whatever_it_begins_with_there_is_an_answer(
    marks: set[str], fill: bytes, at: int, length: int, more: int
) -> None:
    head = bytearray(HEAD_BYTES)
    head[at : at + len(fill)] = fill
    for offset, mark in map(MARKS.__getitem__, sorted(marks)):
        head[offset : offset + len(mark)] = mark
    head = head[:length]
    found = recognise(bytes(head), len(head) + (more if length == HEAD_BYTES else 0))
    assert found.text
    if not found.format:
        assert_says_what_to_do(found.text)
    suggested(bytes(head))


def test_a_cd_that_ends_within_its_first_descriptor_is_cut_off() -> None:
    whole = boot_iso.image()
    for end in (32_774, 32_780, 32_850, 34_815):
        found = recognise(whole[:end], end)
        assert not found.format
        assert "cut off" in found.text


@pytest.mark.parametrize(("descriptor_at", "sectors"), [(1, 1), (21, 20), (1, 0)])
def test_a_parent_is_found_wherever_a_vmdk_says_that_its_description_is(descriptor_at: int, sectors: int) -> None:
    good = b'# Disk DescriptorFile\ncreateType="monolithicSparse"\nparentCID=ffffffff\nRW 8 SPARSE "x"\n'
    evil = good + b"#" * 600 + b'\nparentFileNameHint="/usr/share/x"\n'
    head = bytearray(HEAD_BYTES)
    struct.pack_into("<4sIIQQQQ", head, 0, b"KDMV", 1, 3, 8, 128, descriptor_at, sectors)
    head[descriptor_at * 512 : descriptor_at * 512 + len(good)] = good
    assert recognise(bytes(head), 1 << 20).format == "vmdk"
    head[512 : 512 + len(evil)] = evil
    found = recognise(bytes(head), 1 << 20)
    assert (found.format, "needs its parent" in found.text) == ("", True)
