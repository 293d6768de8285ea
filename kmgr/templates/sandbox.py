"""A cell for programs that read files strangers made: bubblewrap around them, limits under it.

Inside there is no network, no other process, no name of a user, and of the
server's files only `/usr` (the program and its libraries) and those that are
named here: the input to read, perhaps one file to write. A flaw in a parser then
reaches nothing but that one import.

* Works for root and for a daemon without rights, by user namespaces. The rights a daemon was given for its ports
  and addresses are dropped first: bubblewrap refuses to start with them, and the cell should not have them.
* The program ends with the thread that began it (`--die-with-parent`): a killed daemon leaves no conversion behind.
* Without a cell nothing is read at all: the error says what is missing on the server.

Runs in the daemon's loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmgr.errors import Refused, Unavailable

# How the files are called inside.
INPUT = "/input"
OUTPUT = "/output"

_MEMORY_BYTES = 2 << 30
_ERRORS_BYTES = 8 << 10
_CELL = (
    "--unshare-all", "--die-with-parent", "--new-session", "--uid", "65534", "--gid", "65534", "--chdir", "/",
    "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib",
    "--symlink", "usr/lib64", "/lib64", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache",
    "--ro-bind-try", "/etc/alternatives", "/etc/alternatives", "--dev-bind", "/dev/null", "/dev/null",
)  # fmt: skip
_NOT_CONFINED = ("bwrap: ", "No permissions to create new namespace")

OnOutput = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One run: which file it reads, which it may write (up to `write_bytes` long), and how long it may take."""

    source: Path
    limit_s: int
    target: Path | None = None
    write_bytes: int = 0
    keep_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended: the exit status, the beginning of its output, and of its complaints."""

    code: int
    out: bytes
    errors: str


def command(program: Sequence[str], job: Job) -> tuple[str, ...]:
    """Return the whole command line for one run in a cell."""
    limits = (
        f"--as={_MEMORY_BYTES}",
        f"--cpu={job.limit_s}",
        f"--fsize={job.write_bytes}",
        "--nofile=64",
        "--core=0",
    )
    files = ["--ro-bind", str(job.source), INPUT]
    if job.target is not None:
        files += ["--bind", str(job.target), OUTPUT]
    return (
        *("prlimit", *limits, "--", "setpriv", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"),
        *("nice", "-n", "10", "ionice", "-t", "-c", "2", "-n", "7", "bwrap", *_CELL, *files, "--", *program),
    )


async def run(program: Sequence[str], job: Job, *, on_output: OnOutput | None = None) -> Ended:
    """Run a program in a cell; raise `Refused` if it takes too long, `Unavailable` if there can be no cell."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command(program, job),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise Unavailable("prlimit is missing on this server: install the package util-linux") from error
    assert process.stdout is not None  # noqa: S101 - both are pipes
    assert process.stderr is not None  # noqa: S101
    try:
        async with asyncio.timeout(job.limit_s):
            out, complaints, _ = await asyncio.gather(
                _read(process.stdout, most=job.keep_bytes, on_output=on_output),
                _read(process.stderr, most=_ERRORS_BYTES),
                process.wait(),
            )
    except TimeoutError:
        raise Refused(
            f"looking at it took longer than {job.limit_s} s: this server is very busy, or the image is damaged. Try "
            "again when there is less to do"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    errors = complaints.decode(errors="replace")
    assert process.returncode is not None  # noqa: S101 - waited for
    _complain_of_the_cell(process.returncode, errors)
    return Ended(process.returncode, out, errors)


def _complain_of_the_cell(code: int, errors: str) -> None:
    if code == 127 and "bwrap" in errors and "failed to run" in errors:
        raise Unavailable("bubblewrap is missing on this server: install the package bubblewrap")
    if code and "bwrap: execvp" in errors:
        raise Unavailable("qemu-img is missing on this server: install the package qemu-utils")
    if code and any(line.startswith(_NOT_CONFINED) for line in errors.splitlines()):
        told = errors.strip().splitlines()[0].removeprefix("bwrap: ")
        raise Unavailable(
            f"this server cannot confine the program that reads disk images ({told}), so none is read. Allow user"
            " namespaces (sysctl kernel.unprivileged_userns_clone=1, and no RestrictNamespaces for kmgr)",
            code="no_sandbox",
        )


async def _read(reader: asyncio.StreamReader, *, most: int, on_output: OnOutput | None = None) -> bytes:
    """Read to the end, keep the first `most` bytes."""
    kept = bytearray()
    while data := await reader.read(64 * 1024):
        if on_output is not None:
            on_output(data)
        kept += data[: most - len(kept)]
    return bytes(kept)
