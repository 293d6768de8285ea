"""How quick hashes, compression and encryption are here, in MB per processor second; run by the benchmarks' own venv.

Says one JSON object: name to [rate, ratio] (ratio: how much smaller; 1 for what doesn't compress). Argument: a
file that is like a disk of a guest: programs, texts, fonts.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import blake3
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

KIB = 1 << 10
ENOUGH_S = 0.4


def rate(work: Callable[[bytes], object], pieces: list[bytes]) -> float:
    """Return how many MB a second of processor time are done, looking at different memory each time."""
    work(pieces[0])
    began, done = time.process_time(), 0
    while time.process_time() - began < ENOUGH_S:
        for piece in pieces:
            work(piece)
            done += len(piece)
    return done / (time.process_time() - began) / 1e6


def cut(data: bytes, size: int) -> list[bytes]:
    """Return whole pieces of a size."""
    return [data[at : at + size] for at in range(0, len(data) - size + 1, size)]


def sealing(cipher: AESGCM | ChaCha20Poly1305) -> Callable[[bytes], bytes]:
    """Return what encrypts a record."""
    return lambda data: cipher.encrypt(bytes(12), data, None)


def main() -> None:
    """Measure all."""
    chance = os.urandom(32 << 20)
    disk = Path(sys.argv[1]).read_bytes()
    found: dict[str, tuple[float, float]] = {}
    for size in (64, 256, 1024):
        pieces = cut(chance, size * KIB)
        found[f"sha256 of {size} KiB"] = (rate(lambda data: hashlib.sha256(data).digest(), pieces), 1)
        found[f"blake2b of {size} KiB"] = (rate(lambda data: hashlib.blake2b(data).digest(), pieces), 1)
        found[f"blake3 of {size} KiB"] = (rate(lambda data: blake3.blake3(data).digest(), pieces), 1)
    records = cut(chance[: 8 << 20], 16 * KIB)
    for name, cipher in (
        ("AES-128-GCM", AESGCM(os.urandom(16))),
        ("AES-256-GCM", AESGCM(os.urandom(32))),
        ("ChaCha20-Poly1305", ChaCha20Poly1305(os.urandom(32))),
    ):
        found[f"{name} of 16 KiB (cryptography's OpenSSL)"] = (rate(sealing(cipher), records), 1)
    for what, data in (("a guest's disk", disk), ("random bytes", chance)):
        pieces = cut(data, 1024 * KIB)
        for level in (1, 3):
            packer, unpacker = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
            packed = [packer.compress(piece) for piece in pieces]
            ratio = sum(map(len, pieces)) / sum(map(len, packed))
            found[f"zstd -{level} of {what}, 1 MiB each"] = (rate(packer.compress, pieces), ratio)
            if level == 1:
                unpacked = rate(unpacker.decompress, packed) * ratio
                found[f"zstd -{level} of {what}, back"] = (unpacked, ratio)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
