"""Puts a block right that went bad on this server's disk, and gives single blocks to servers that do the same.

The right bytes come from another version here that has the same block, else from
another server: call `block` {version, offset}, answered with base64 by a server
whose own block has the right hash. What comes is believed by its hash alone; a
server that sends something else is named, and not asked again about that version.

A call of its own, not the stream of a copy: that one shares pieces out among
receivers, and a repair is in nobody's way. Runs in the daemon's loop; files are touched in threads.
"""

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from kmgr.errors import KmgrError, NotFound, Refused
from kmgr.grid.port import Requests
from kmgr.ids import ServerId, VersionId
from kmgr.replica import manifest as m
from kmgr.replica.images import Images
from kmgr.replica.inplace import Reader, Shorter, rewrite
from kmgr.replica.model import Version
from kmgr.whole import is_whole

logger = logging.getLogger(__name__)

T = TypeVar("T")

Here: TypeAlias = Callable[[], Sequence[Version]]
Sources: TypeAlias = Callable[[VersionId], Sequence[ServerId] | None]


class InThread(Protocol):
    """Runs what blocks in a thread."""

    def __call__(self, work: Callable[..., T], *values: Any) -> Awaitable[T]:
        """Return what `work` returns."""
        ...


class Mender:
    """Finds the right bytes. `liars` sent wrong ones: (version, server)."""

    def __init__(
        self, images: Images, requests: Requests, *, here: Here, sources: Sources, in_thread: InThread
    ) -> None:
        self._images = images
        self._requests = requests
        self._here = here
        self._sources = sources
        self._in_thread = in_thread
        self.liars: set[tuple[VersionId, ServerId]] = set()

    def forgive(self, version: VersionId) -> None:
        """Ask all servers again about a version."""
        self.liars = {found for found in self.liars if found[0] != version}

    async def put_right(self, version: Version, block: m.Block) -> ServerId | None:
        """Write the right bytes of a block and return whose they were (empty: this server's own), or None."""
        path = self._images.path(version.id)
        data = await self._in_thread(self._own, version, block)
        if data is not None and await self._in_thread(rewrite, path, block, data):
            return ServerId("")
        for server in self._sources(version.id) or ():
            if (version.id, server) in self.liars:
                continue
            try:
                data = await fetch_block(self._requests, server, version.id, block)
            except KmgrError as error:
                logger.info("a block cannot be had", extra={"server": server, "cause": error.message})
                continue
            if len(data) != block.length or m.digest(data) != block.digest:
                await self._accuse(version.id, server)
            elif await self._in_thread(rewrite, path, block, data):
                return server
            else:
                break  # this disk does not keep it, whoever it comes from
        return None

    def _own(self, version: Version, block: m.Block) -> bytes | None:
        """Look for the block in the other versions of the image that are here; in a thread."""
        for other in self._here():
            if other.image != version.image or other.id == version.id:
                continue
            try:
                same = _same(self._images.manifest(other.id), block)
                if same is not None and (data := _read_right(self._images, other.id, same)) is not None:
                    return data
            except (KmgrError, OSError):
                continue
        return None

    async def _accuse(self, version: VersionId, server: ServerId) -> None:
        logger.error("a server sent wrong bytes of an image", extra={"server": server, "version": version})
        self.liars.add((version, server))
        await warn(self._requests, server, version)


async def warn(requests: Requests, server: ServerId, version: VersionId) -> None:
    """Tell a server that wrong bytes of a version came from it, so that it looks; if it can be reached."""
    try:
        await requests.call(server, "scrub", {"version": version}, timeout_s=3.0)
    except KmgrError as error:
        logger.info("a server was not told that it sent wrong bytes", extra={"cause": error.message})


async def fetch_block(requests: Requests, server: ServerId, version: VersionId, block: m.Block) -> bytes:
    """Return what another server says is a block; it may be wrong."""
    answer = await requests.call(server, "block", {"version": version, "offset": block.offset})
    try:
        return base64.b64decode(str(answer.get("data", "")), validate=True)
    except ValueError:
        return b""


async def give(images: Images, version: VersionId, offset: object) -> Mapping[str, Any]:
    """Answer the call `block`; raise `NotFound` if the block is not right here either."""
    manifest = await asyncio.to_thread(images.manifest, version)
    data = await asyncio.to_thread(_read_right, images, version, _at(manifest, offset))
    if data is None:
        raise NotFound(f"the block at {offset} of version {version} is not right on this server either")
    return {"data": base64.b64encode(data).decode()}


def _same(manifest: m.Manifest, block: m.Block) -> m.Block | None:
    indices = (index for index, digest in enumerate(manifest.all_digests()) if digest == block.digest)
    found = (manifest.block(index) for index in indices)
    return next((one for one in found if one.length == block.length), None)


def _at(manifest: m.Manifest, offset: object) -> m.Block:
    index = manifest.index_at(offset) if is_whole(offset) else None
    if index is not None:
        return manifest.block(index)
    raise Refused(f"there is no block at {offset!r}")


def _read_right(images: Images, version: VersionId, block: m.Block) -> bytes | None:
    try:
        reader = Reader(images.path(version))
    except FileNotFoundError:
        raise NotFound(f"version {version} is not on this server") from None
    try:
        data = reader.read(block)
        return bytes(data) if data is not None and m.digest(data) == block.digest else None
    except Shorter:
        return None
    finally:
        reader.close()
