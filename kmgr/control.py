"""The local door: a unix socket in the data folder through which `kmgr` commands speak to the running daemon.

One JSON object per line in, one out. Who may open the file (its owner and root)
may do everything: it is the way back in when the only administrator has
forgotten the password.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from kmgr import errors
from kmgr.errors import InvariantBroken, KmgrError, NotFound, Refused, Unavailable

logger = logging.getLogger(__name__)

Operation: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
# Of these the body's `length` bytes follow the line.
Taking: TypeAlias = Callable[[Mapping[str, Any], AsyncIterator[bytes]], Awaitable[Mapping[str, Any]]]

MAX_LINE = 1 << 20
_CHUNK = 1 << 18


def socket_path(data_dir: Path) -> Path:
    """Return where the daemon of a data folder listens."""
    return data_dir / "run" / "control.sock"


class ControlServer:
    """Answers local commands; `operations` maps a word to what it does, `taking` those that bytes follow.

    `otherwise` says why this daemon does nothing else.
    """

    def __init__(
        self,
        data_dir: Path,
        operations: Mapping[str, Operation],
        *,
        taking: Mapping[str, Taking] | None = None,
        otherwise: Callable[[], KmgrError] | None = None,
    ) -> None:
        self._taking = taking or {}
        self._otherwise = otherwise
        self._path = socket_path(data_dir)
        self._operations = operations
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; a socket left behind by a killed daemon is replaced."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._short(), limit=MAX_LINE)
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            with suppress(OSError):  # a disk that is read-only now: the next start replaces it
                self._path.unlink(missing_ok=True)

    def _short(self) -> str:
        return short_address(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), 10)
            writer.write(json.dumps(await self._answer(line, reader)).encode() + b"\n")
            await writer.drain()
        except (OSError, TimeoutError, ValueError) as error:
            logger.warning("a local command broke off", extra={"cause": str(error)})
        finally:
            writer.close()

    async def _answer(self, line: bytes, reader: asyncio.StreamReader) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
            if (taking := self._taking.get(request["op"])) is not None:
                return {"ok": await _taken(taking, request["body"], reader)}
            operation = self._operations.get(request["op"])
            if operation is None and self._otherwise is not None:
                raise self._otherwise()
            if operation is None:
                raise NotFound(f"this daemon does not know {request['op']!r}: is it an older version?")
            return {"ok": await operation(request.get("body", {}))}
        except KmgrError as error:
            return _told(error)
        except (ValueError, KeyError, TypeError) as error:
            return _told(Refused(f"not a request: {error!r}"))
        except OSError as error:
            return _told(Unavailable(f"the daemon cannot do that: {error}. Look after its disk, then try again"))
        except Exception:
            logger.exception("a local command failed by a bug: please report it")
            return _told(InvariantBroken("that failed by a bug: please report it with what the daemon's log says"))


def _told(error: KmgrError) -> Mapping[str, Any]:
    return {"error": {"class": type(error).__name__, "code": error.code, "message": error.message}}


async def _taken(taking: Taking, body: Mapping[str, Any], reader: asyncio.StreamReader) -> Mapping[str, Any]:
    left = int(body["length"])

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal left
        while left:
            data = await reader.read(min(left, _CHUNK))
            if not data:
                raise ConnectionResetError("the command ended")
            left -= len(data)
            yield data

    try:
        return await taking(body, chunks())
    finally:
        # Whoever sends looks for the answer when it has sent all.
        async for _ in chunks():
            pass


async def ask(
    data_dir: Path, op: str, body: Mapping[str, Any] | None = None, *, data: bytes = b"", wait_s: float = 30
) -> dict[str, Any]:
    """Ask the daemon of `data_dir`; raises what it raised, or `Unavailable` if none runs. `data` follows the line."""
    path = socket_path(data_dir)
    try:
        reader, writer = await asyncio.open_unix_connection(short_address(path), limit=MAX_LINE)
    except (FileNotFoundError, ConnectionRefusedError):
        raise Unavailable(_silent(data_dir)) from None
    except PermissionError:
        raise Refused(f"you may not open {path}: run this command as root or as the user of the daemon") from None
    try:
        writer.write(json.dumps({"op": op, "body": dict(body or {})}).encode() + b"\n" + data)
        line = await asyncio.wait_for(reader.readline(), wait_s)
    except TimeoutError:
        raise Unavailable(f"the daemon on {data_dir} did not answer within {wait_s:.0f} s") from None
    except ConnectionError:
        line = b""  # killed while it was being told: the pipe breaks before an end is read
    finally:
        writer.close()
    if not line:
        raise Unavailable(f"the daemon on {data_dir} stopped while it was asked: see its log")
    answer = json.loads(line)
    if "error" in answer:
        raise _as_error(answer["error"])
    result: dict[str, Any] = answer["ok"]
    return result


def lock_path(data_dir: Path) -> Path:
    """Return the file that a running daemon holds locked, with its process in it."""
    return data_dir / "run" / "daemon.lock"


def _silent(data_dir: Path) -> str:
    """Say why nobody answers, and what to do."""
    if _is_held(lock_path(data_dir)):
        return (
            f"the kmgr that runs on {data_dir} answers nothing yet: it is starting, or its disk is full and it waits "
            "for room. journalctl -u kmgr (a witness: kmgr-witness) tells which"
        )
    return (
        f"no kmgr runs on {data_dir}. Start it: {how_to_start(data_dir)}; a witness: systemctl start kmgr-witness. "
        "Why it ended: journalctl -u kmgr"
    )


def how_to_start(data_dir: Path, *, witness: bool = False) -> str:
    """Return how the daemon of a data folder is started, as a service and by hand."""
    service, command = ("kmgr-witness", "kmgr witness run") if witness else ("kmgr", "kmgr run")
    return f"systemctl start {service} (by hand: {command} --data {data_dir})"


def _is_held(path: Path) -> bool:
    """Tell whether somebody holds a lock, without asking for it: a daemon that starts now must find it free."""
    try:
        inode = str(path.stat().st_ino)
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return False
    return any(words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode for words in held)


def short_address(path: Path) -> str:
    """Return an address for a unix socket whose path may be longer than the 107 bytes the kernel takes."""
    if len(str(path).encode()) <= 107:
        return str(path)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    return f"/proc/self/fd/{folder}/{path.name}"


def _as_error(raw: Mapping[str, str]) -> KmgrError:
    kind = getattr(errors, raw.get("class", ""), KmgrError)
    if not (isinstance(kind, type) and issubclass(kind, KmgrError)):
        kind = KmgrError
    return kind(raw.get("message", "the daemon refused"), code=raw.get("code"))
