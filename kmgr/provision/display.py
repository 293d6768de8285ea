"""A desktop's screen, live or as a picture, from QEMU's unix socket to whoever asks over the grid port.

QEMU listens on no network port. The asking server has checked the person's
ticket; here only the desktop and its generation are checked.
"""

import asyncio
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kmgr.errors import ConfigError, Conflict, NotFound, Unavailable
from kmgr.grid.port import Accept, Grid, Requests
from kmgr.grid.waits import first_of
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.attendance import Attendance
from kmgr.provision.hypervisor import Hypervisor
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.queries import desktop as find_desktop
from kmgr.provision.tunnel import copied

OPERATION = "display"
SCREENSHOT = "screenshot"
# A picture goes through a stream, its length in four bytes before it: it may be larger than what a call takes.
_SCREENSHOT_S = 15.0
_LARGEST_PICTURE = 64 << 20
# The kernel takes 108 bytes for a unix address, the last one a zero.
_LONGEST_PATH = 107


def socket_finder(data_dir: Path) -> Callable[[DesktopId], Path]:
    """Return where desktops' display sockets lie: in the data folder, or in a short one if that path is too long."""
    folder = data_dir / "run"
    if len(str(folder).encode()) + len("/dsk-000000000000.vnc") > _LONGEST_PATH:
        digest = hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"kmgr-{digest}"
        _own(folder)
    return lambda desktop: folder / f"{desktop}.vnc"


def _own(folder: Path) -> None:
    folder.mkdir(mode=0o711, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigError(
            f"desktops' screens need {folder}, but it is not a folder of this user: remove it, or give kmgr a data "
            "folder with a shorter path."
        )
    folder.chmod(0o711)  # whatever the umask made of it


def serve_display(
    requests: Requests,
    grid: Grid,
    hypervisor: Hypervisor,
    *,
    socket: Callable[[DesktopId], Path],
    attendance: Attendance,
) -> None:
    """Answer `display` streams and `screenshot` calls of this server's desktops; `attendance` is told who looks.

    body: desktop, whose it is in the eyes of who asks (user), and for streams its generation
    """

    async def display(_: ServerId, body: Mapping[str, Any], accept: Accept) -> None:
        desktop = _checked(grid, body)
        try:
            reader, writer = await asyncio.open_unix_connection(str(socket(desktop)))
        except OSError as error:
            raise Unavailable(f"the desktop's screen cannot be reached: {error.strerror or error}") from error
        try:
            stream = await accept()
            with attendance.open(desktop) as viewer:
                await first_of(
                    copied(reader, stream.writer),
                    copied(stream.reader, writer, heard=lambda data: attendance.heard(desktop, viewer, data)),
                    viewer.cut.wait(),
                )
        finally:
            writer.close()

    async def screenshot(_: ServerId, body: Mapping[str, Any], accept: Accept) -> None:
        picture = await hypervisor.screenshot(_known(grid, body).id)
        stream = await accept()
        stream.writer.write(len(picture).to_bytes(4))
        stream.writer.write(picture)
        await stream.writer.drain()

    requests.serve_stream(OPERATION, display)
    requests.serve_stream(SCREENSHOT, screenshot)


async def fetch_screenshot(requests: Requests, server: ServerId, desktop: DesktopId, user: str | None) -> bytes:
    """Return what a desktop of a server shows now, as a PNG; raise what that server says, or `Unavailable`.

    `user` is whose desktop it is in the eyes of who asks.
    """
    stream = await requests.open(server, SCREENSHOT, {"desktop": desktop, "user": user}, timeout_s=_SCREENSHOT_S)
    try:
        async with asyncio.timeout(_SCREENSHOT_S):
            size = int.from_bytes(await stream.reader.readexactly(4))
            if size > _LARGEST_PICTURE:
                raise Unavailable(f"a picture of {size >> 20} MiB was announced; no screen is that large")
            return await stream.reader.readexactly(size)
    except TimeoutError:
        raise Unavailable("the picture did not come in time: the server may be overloaded, try again") from None
    except (OSError, EOFError) as error:
        raise Unavailable("the picture broke off on its way: try again") from error
    finally:
        stream.writer.close()


def _known(grid: Grid, body: Mapping[str, Any]) -> Desktop:
    with grid.view() as db:
        found = find_desktop(db, DesktopId(str(body["desktop"])))
    if found is None or found.server != grid.server:
        raise NotFound("the desktop is not on this server")
    if body.get("user", found.user) != found.user:
        raise Conflict("the desktop was given to somebody else in the meantime: open it again")
    return found


def _checked(grid: Grid, body: Mapping[str, Any]) -> DesktopId:
    found = _known(grid, body)
    if found.generation != body["generation"] or found.state not in (DesktopState.READY, DesktopState.IN_USE):
        raise Conflict("the desktop was made anew or given back in the meantime: open it again")
    return found.id
