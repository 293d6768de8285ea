"""What a copy costs at least: the same file over the same link by the shortest Python, one step after the other.

One blocking socket, one thread, 1 MiB at a time; every step does what the one before it did, and one thing more.
`steps` measures them in turn with kmgr. Each end is a process of its own, which says what it took:
`python -m tests.bench.image_steps END STEP ADDRESS FILE IDENTITY`.
"""

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from kmgr.grid import authority, identity
from kmgr.ids import ServerId, VersionId
from kmgr.replica.manifest import BLOCK_BYTES, digest
from tests.bench.harness import ROOT, Figure
from tests.bench.image_grid import MIB, distributing, picture
from tests.lab.links import Links
from tests.lab.wires import Wires

TCP, READ, WRITE, HASH, TLS = STEPS = (
    "TCP alone", "and the source reads a file", "and the receiver writes one", "and BLAKE3 of each 64 KiB",
    "and all of it under TLS 1.3",
)  # fmt: skip
_PORT = 8898
_GB = 1e9


def steps(folder: Path, short: bool) -> list[Figure]:
    """1 Gbit/s, one receiver: processor seconds per GB of either end, step by step, and kmgr's in turn with them."""
    size = (256 if short else 1024) * MIB
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in (*STEPS, "kmgr")}
    others = []
    file, wires = folder / "disk", Wires(folder / "bare")
    ends = tuple(ServerId(f"srv-{end}") for end in ("source", "receiver"))
    for server in ends:
        wires.identity(server)
    with Links(2, mbit=1000) as links:
        for _ in range(1 if short else 5):
            picture(file, size)
            for step in STEPS:
                taken[step].append(_bare(links, step, file, tuple(wires.folder / end for end in ends)))
            with distributing(links, folder / "grid", file, [1]) as grid:
                whole = grid.copy([1])
                assert grid.same(1, VersionId("ver-1"))
            taken["kmgr"].append((whole.cpu[0], whole.cpu[1]))
            others.append(whole.busy)
    return [*_rows(taken, size), Figure("used by others", round(100 * max(others)), "%", len(others))]


def _rows(taken: Mapping[str, list[tuple[float, float]]], size: int) -> list[Figure]:
    ways: Mapping[str, Callable[[tuple[float, float]], float]] = {
        "source": lambda cpu: cpu[0], "receiver": lambda cpu: cpu[1], "both": sum
    }  # fmt: skip
    found = []
    for name, runs in taken.items():
        for end, of in ways.items():
            values = [of(cpu) / size * _GB for cpu in runs]
            spread = (round(min(values), 2), round(max(values), 2))
            found.append(
                Figure(f"CPU-s per GB, {name}: {end}", round(median(values), 2), "s", len(runs), spread=spread)
            )
    return found


def _bare(links: Links, step: str, file: Path, folders: tuple[Path, ...]) -> tuple[float, float]:
    """Copy the file once and return the processor seconds of the source and of the receiver."""
    with ExitStack() as stack:
        ends = []
        for place, end in enumerate(_ENDS):
            words = [end, step, links.address(0), str(file), str(folders[place])]
            command = links.inside(place, [sys.executable, "-m", "tests.bench.image_steps", *words])
            ends.append(stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)))
        told = [end.communicate()[0] for end in ends]
    return float(told[0]), float(told[1])


def source(step: str, address: str, file: Path, folder: Path) -> float:
    """Send the file to whoever connects."""
    buffer = bytearray(MIB)
    with socket.create_server((address, _PORT)) as listener:
        line, _ = listener.accept()
    began = time.process_time()
    with _wrapped(line, step, folder, authority.server_context, server_side=True) as line, file.open("rb", 0) as disk:
        if step == TCP:
            for _ in range(file.stat().st_size // MIB):
                line.sendall(buffer)
        else:
            while count := disk.readinto(buffer):
                line.sendall(memoryview(buffer)[:count])
    return time.process_time() - began


def receiver(step: str, address: str, file: Path, folder: Path) -> float:
    """Take the file."""
    size, buffer, target = file.stat().st_size, bytearray(MIB), file.with_suffix(".bare")
    line = _connected(address)
    began = time.process_time()
    with (
        _wrapped(line, step, folder, authority.client_context, server_side=False) as line,
        target.open("wb", 0) as disk,
    ):
        for _ in range(size // MIB):
            view = memoryview(buffer)
            while view:
                count = line.recv_into(view)
                assert count, "it hung up"
                view = view[count:]
            if step in (HASH, TLS):
                for at in range(0, MIB, BLOCK_BYTES):
                    digest(memoryview(buffer)[at : at + BLOCK_BYTES])
            if step not in (TCP, READ):
                disk.write(buffer)
    took = time.process_time() - began
    target.unlink()
    return took


def _connected(address: str) -> socket.socket:
    while True:
        try:
            return socket.create_connection((address, _PORT))
        except ConnectionRefusedError:
            time.sleep(0.02)


def _wrapped(
    line: socket.socket, step: str, folder: Path, context: Callable[..., ssl.SSLContext], *, server_side: bool
) -> socket.socket:
    if step != TLS:
        return line
    own, place = identity.load(folder), identity.folder(folder)
    assert own is not None, folder
    tls = context(place / "server.crt", place / "server.key", own.ca_cert_pem, alpn=["bench"])
    return tls.wrap_socket(line, server_side=server_side)


_ENDS: Mapping[str, Callable[[str, str, Path, Path], float]] = {"source": source, "receiver": receiver}

if __name__ == "__main__":
    print(_ENDS[sys.argv[1]](sys.argv[2], sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5])))
