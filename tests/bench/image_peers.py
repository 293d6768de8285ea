"""The same file over the same links by others: a bare TCP stream (the floor), rsync, scp, and a libtorrent swarm.

rsync and scp copy to one receiver after the other, as their scripts do. All write to memory. Each returns a `Taken`
whose `seconds` count from the common start, so that the last one is when everybody had the file.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.harness import ROOT
from tests.bench.image_grid import Busy, Process, Taken
from tests.lab.links import Links

# Only these benchmarks need it, so it lives in a virtual environment of its own.
LIBTORRENT = "libtorrent==2.1.1"
VENV = ROOT / "build" / "bench-venv"
PIECE = 256 * 1024
_PORT = 8873
_SSHD = "/usr/sbin/sshd"

SENDER = """
import socket, sys
with socket.create_server((sys.argv[1], 8899)) as listener:
    line, _ = listener.accept()
    with line, open(sys.argv[2], "rb") as disk:
        line.sendfile(disk)
"""
RECEIVER = """
import socket, sys, time
began = time.monotonic()
while True:
    try:
        line = socket.create_connection((sys.argv[1], 8899))
        break
    except ConnectionRefusedError:
        time.sleep(0.01); began = time.monotonic()
buffer = bytearray(1 << 20)
with line, open(sys.argv[2], "wb", buffering=0) as disk:
    while count := line.recv_into(buffer):
        disk.write(memoryview(buffer)[:count])
print(time.monotonic() - began)
"""


class Room:
    """The links, the file, and a place for what is received."""

    def __init__(self, links: Links, folder: Path, file: Path) -> None:
        self.links = links
        self.folder = folder
        self.file = file

    def target(self, place: int) -> Path:
        """Return where a receiver writes."""
        return self.folder / f"got.{place}"

    def check(self, receivers: Sequence[int]) -> None:
        """Compare what the receivers have with the file, and take it away."""
        for place in receivers:
            assert subprocess.run(["cmp", "-s", self.file, self.target(place)], check=False).returncode == 0, place
            self.target(place).unlink()


def floor(room: Room, _: Sequence[int] = (1,)) -> Taken:
    """One stream of TCP from the source to one receiver, nothing in it but the file."""
    sender, receiver = (
        room.links.inside(place, [sys.executable, "-c", script, room.links.address(0), str(path)])
        for place, script, path in ((0, SENDER, room.file), (1, RECEIVER, room.target(1)))
    )
    busy = Busy()
    with (
        subprocess.Popen(sender) as serving,
        subprocess.Popen(receiver, stdout=subprocess.PIPE, text=True) as drawing,
    ):
        assert drawing.stdout is not None
        took = float(drawing.stdout.read())
        cpu_s = _ended(drawing) + _ended(serving)
    room.check([1])
    return Taken((took,), cpu_s, busy=busy.others(cpu_s))


def rsync(room: Room, receivers: Sequence[int], *, whole: bool = True) -> Taken:
    """An rsync daemon on the source, one receiver after the other; not `whole`: only what differs."""
    config = room.folder / "rsyncd.conf"
    config.write_text(f"use chroot = no\nuid = 0\ngid = 0\n[disk]\npath = {room.file.parent}\nread only = yes\n")
    address = room.links.address(0)
    serve = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={_PORT}", f"--address={address}"]
    url = f"rsync://{address}:{_PORT}/disk/{room.file.name}"
    how = ["rsync", "--whole-file" if whole else "--no-whole-file", "--ignore-times", "--inplace", url]
    with _serving(room.links, serve) as cpu:
        return _in_turn(room, receivers, lambda place: [*how, str(room.target(place))], cpu)


def scp(room: Room, receivers: Sequence[int]) -> Taken:
    """An OpenSSH server on the source with its default ciphers, one receiver after the other."""
    folder = room.folder / "ssh"
    folder.mkdir(exist_ok=True)
    for name in ("host", "user"):
        if not (folder / name).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress {room.links.address(0)}:{_PORT}\nHostKey {folder / 'host'}\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nStrictModes no\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\nLogLevel ERROR\n"
    )
    words = [
        "scp", "-q", "-P", str(_PORT), "-i", str(folder / "user"), "-o", "StrictHostKeyChecking=no",
        "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", f"root@{room.links.address(0)}:{room.file}",
    ]  # fmt: skip
    with _serving(room.links, [_SSHD, "-D", "-e", "-f", str(config)]) as cpu:
        return _in_turn(room, receivers, lambda place: [*words, str(room.target(place))], cpu)


def torrent(room: Room, receivers: Sequence[int], *, piece: int = PIECE, encrypted: bool = False) -> Taken:
    """A libtorrent swarm of all places, begun at the same time; making the torrent and starting is not counted."""
    python = interpreter(LIBTORRENT)
    places = [0, *receivers]
    folders = [room.folder / f"torrent.{place}" for place in places]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    (folders[0] / "disk").hardlink_to(room.file)
    spec = room.folder / "torrent.json"
    about = {
        "addresses": [room.links.address(place) for place in places],
        "folders": [str(folder) for folder in folders],
        "piece": piece,
        "encrypted": encrypted,
        "torrent": str(room.folder / "disk.torrent"),
    }
    spec.write_text(json.dumps(about))
    script = str(ROOT / "tests" / "bench" / "torrent_node.py")
    subprocess.run([python, "-W", "ignore", script, spec], check=True)
    peers = [
        Process(room.links.inside(place, [str(python), script, str(spec), str(number)]), room.folder / "torrent.log")
        for number, place in enumerate(places)
    ]
    try:
        for peer in peers:
            assert peer.answer() == {"ready": True}
        began, busy = time.monotonic(), Busy()
        for peer in peers:
            peer.tell("go")
        seconds = tuple(float(peer.done()["done"]) - began for peer in peers[1:])
        time.sleep(0.3)
        usage = [json.loads((folder / "used").read_text()) for folder in folders]
        cpu_s = sum(one["cpu"] for one in usage)
        taken = Taken(seconds, cpu_s, sent=tuple(one["sent"] for one in usage), busy=busy.others(cpu_s))
    finally:
        for peer in peers:
            peer.kill()
    for number, place in enumerate(receivers, 1):
        (folders[number] / "disk").replace(room.target(place))
    room.check(receivers)
    (folders[0] / "disk").unlink()
    return taken


def _in_turn(
    room: Room, receivers: Sequence[int], words: Callable[[int], list[str]], serving: Callable[[], float]
) -> Taken:
    """Run the receivers' commands one after the other; `serving` ends the server and tells what that took."""
    began, busy, cpu_s = time.monotonic(), Busy(), 0.0
    seconds = []
    for place in receivers:
        # A process of its own: the limits of the lab must not see what this one is.
        with subprocess.Popen(room.links.inside(place, words(place)), env=_plain()) as process:
            cpu_s += _ended(process)
        seconds.append(time.monotonic() - began)
    cpu_s += serving()
    taken = Taken(tuple(seconds), cpu_s, busy=busy.others(cpu_s))
    room.check(receivers)
    return taken


@contextmanager
def _serving(links: Links, words: Sequence[str]) -> Iterator[Callable[[], float]]:
    """Run a server at place 0 until it is told to end, or by the end at the latest."""
    with subprocess.Popen(links.inside(0, words), env=_plain()) as process:
        try:
            _wait_for_port(links)
            yield lambda: _ended(process, signal.SIGTERM)
        finally:
            if process.poll() is None:
                process.kill()


def _wait_for_port(links: Links) -> None:
    knock = f"import socket; socket.create_connection(({links.address(0)!r}, {_PORT}), 1).close()"
    for _ in range(50):
        words = links.inside(0, [sys.executable, "-c", knock])
        if subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError("the other tool's server did not begin to listen")


def _ended(process: "subprocess.Popen[str] | subprocess.Popen[bytes]", sign: int | None = None) -> float:
    """Wait for a process; return the processor seconds of it and all its children."""
    if sign is not None:
        process.send_signal(sign)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if sign is None:
        assert process.returncode == 0, process.args
    return usage.ru_utime + usage.ru_stime


def _plain() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/root", "LC_ALL": "C"}


def interpreter(*packages: str) -> Path:
    """Return an interpreter with these packages (`name==version`), installed on first use."""
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    missing = [one for one in packages if not any(here == one or here.startswith(f"{one}==") for here in listed)]
    if missing:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *missing], check=True)
    return python
