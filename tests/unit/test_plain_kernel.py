"""A kernel's packed part is unpacked as Debian packs it; another way of packing is named, not guessed."""

import lzma
import subprocess

import pytest

from appliance.image.plain_kernel import unpacked

KERNEL = b"\x7fELF" + bytes(range(256)) * 5000


def test_a_kernel_packed_with_xz_or_with_lz4_is_unpacked() -> None:
    size = len(KERNEL).to_bytes(4, "little")
    assert unpacked(lzma.compress(KERNEL) + size) == KERNEL
    packed = subprocess.run(["lz4", "-lc"], input=KERNEL, capture_output=True, check=True, timeout=60).stdout
    assert unpacked(packed + size) == KERNEL


def test_another_packing_is_named() -> None:
    with pytest.raises(ValueError, match="neither with xz nor with lz4"):
        unpacked(b"\x1f\x8b\x08" + bytes(100))
