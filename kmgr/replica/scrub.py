"""Reads the versions on this server again, little by little, and puts right what the disk has spoilt.

* Every block is compared with the manifest, at `scrub_mib_s`, by a thread that disk
  and processor serve last, and not while images are copied; a round begins every `scrub_days`.
  Where it was is remembered in `images/_scrub`.
* A wrong block is put right (`mend`): from another version here that has it, else from another server.
* If nobody has the right bytes, the version counts as damaged on this server; it is tried again every minute.
* What was found is told to the log of this daemon, to the grid's events and in the heartbeat: version,
  file, first offset. A grid that cannot be told now is told later.
* A server that got wrong bytes from this one says so (call `scrub` {version}): that version is read next.

Runs in the daemon's loop; files are touched in one thread of its own.
"""

import asyncio
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import psutil

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound, Unavailable
from kmgr.grid.port import Requests
from kmgr.ids import ServerId, VersionId
from kmgr.replica import manifest as m
from kmgr.replica import scrubbed
from kmgr.replica.images import Images, disk_error, write_synced
from kmgr.replica.inplace import Reader, Shorter
from kmgr.replica.mend import Here, Mender, Sources, give
from kmgr.replica.model import Version

logger = logging.getLogger(__name__)

T = TypeVar("T")

FILE = "_scrub"
STRETCH_BYTES = 4 << 20
SAVE_S = 30.0
RETRY_S = 60.0
IDLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Rules:
    """How often everything is read again (0: never), and how fast."""

    days: int
    mib_s: int


class Told(Protocol):
    """Where findings go: to the grid's log. Raises `Unavailable` if that is not possible now."""

    async def repaired(self, version: Version, *, offset: int, blocks: int, sources: Sequence[ServerId]) -> None:
        """Blocks had gone bad and were put right."""
        ...

    async def damaged(self, version: Version, *, offset: int, blocks: int) -> None:
        """So many blocks are bad and cannot be put right; 0: none any more."""
        ...

    async def lied(self, version: Version, liar: ServerId) -> None:
        """A server sent wrong bytes."""
        ...


@dataclass(slots=True)
class _Mended:
    """What was put right and not yet told."""

    offset: int
    since: float
    blocks: int = 0
    sources: set[ServerId] = field(default_factory=set)


class Scrub:
    """This server's reader-again. `run()` goes on until it is cancelled; `step()` is one stretch of it."""

    def __init__(
        self,
        images: Images,
        requests: Requests,
        clock: Clock,
        *,
        here: Here,
        sources: Sources,
        told: Told,
        rules: Callable[[], Rules],
        busy: Callable[[], bool],
    ) -> None:
        self._images = images
        self._requests = requests
        self._clock = clock
        self._here = here
        self._sources = sources
        self._told = told
        self._rules = rules
        self._busy = busy
        self._passes = scrubbed.Passes()
        self._loaded = False
        self._saved = clock.monotonic()
        self._tried: dict[VersionId, float] = {}
        self._said: dict[VersionId, int] = {}
        self._mended: dict[VersionId, _Mended] = {}
        self._accused: set[tuple[VersionId, ServerId]] = set()
        self._problem = ""
        self._thread: ThreadPoolExecutor | None = None
        self._mender = Mender(images, requests, here=here, sources=sources, in_thread=self._in_thread)
        requests.serve("block", self._given)
        requests.serve("scrub", self._asked)

    async def run(self) -> None:
        """Go on until cancelled."""
        try:
            while True:
                try:
                    read = await self.step()
                    self._problem = ""
                except KmgrError as error:
                    self._problem = f"golden images cannot be read again: {error.message}"
                    logger.warning("reading images again was stopped", extra={"cause": error.message})
                    read = 0
                await self._clock.sleep(read / (self._rules().mib_s << 20) if read else IDLE_S)
        finally:
            if self._thread is not None:
                self._thread.shutdown(wait=False)
                self._thread = None

    def state(self, version: VersionId, blocks: int) -> Mapping[str, int]:
        """Return for the heartbeat how far a version of so many blocks is, when it was last read, what was found."""
        one = self._passes.of.get(version, scrubbed.Pass())
        percent = 100 * one.next // max(1, blocks)
        return {"percent": percent, "done_at": one.done_at, "bad": len(one.bad), "found": one.found}

    def problems(self, names: Mapping[VersionId, str], servers: Mapping[ServerId, str]) -> tuple[str, ...]:
        """Return what a person should know: what went bad on this disk, and who sent wrong bytes."""
        found = [self._problem] if self._problem else []
        for version, one in sorted(self._passes.of.items()):
            if one.found and version in names:
                end = "could not be repaired, no other server has it right" if one.bad else "repaired"
                where = f"the first at byte {one.first_byte} of {self._images.path(version)}"
                found.append(
                    f"{names[version]}: {_blocks(one.found)} went bad on this disk ({where}), {end}. Its disk may be "
                    "failing: smartctl and dmesg tell more"
                )
        for version, liar in sorted(self._mender.liars):
            if version in names:
                found.append(
                    f"{names[version]}: wrong bytes came from {servers.get(liar, liar)}; its disk may be failing"
                )
        return tuple(found)

    async def step(self) -> int:
        """Read the next stretch if one is due, mend what can be mended; return how many bytes were read."""
        here = {version.id: version for version in self._here()}
        now = self._clock.monotonic()
        await self._load()
        self._passes.keep(here, self._clock.now_ms())
        await self._tell(here, now)
        for version in [one for one, found in self._passes.of.items() if found.bad]:
            if now - self._tried.get(version, -RETRY_S) >= RETRY_S:
                self._tried[version] = now
                await self._mend(here[version], list(self._passes.of[version].bad))
        chosen = None if self._busy() else self._passes.due(days=self._rules().days, now_ms=self._clock.now_ms())
        return 0 if chosen is None else await self._read_on(here[chosen])

    async def _read_on(self, version: Version) -> int:
        one = self._passes.of[version.id]
        try:
            manifest = await self._in_thread(self._images.manifest, version.id)
            first = min(one.next, manifest.blocks)
            after, read, wrong = await self._in_thread(self._compare, version.id, manifest, first)
        except (NotFound, FileNotFoundError, Shorter):
            # Not ours to judge: the agent's next round sees that the file is gone, and names it.
            self._passes.of.pop(version.id, None)
            return 0
        except OSError as error:
            raise disk_error(error, doing=f"reading {self._images.path(version.id)}") from error
        one.next = after
        if wrong:
            await self._mend(version, wrong)
        if after >= manifest.blocks:
            self._passes.ended(version.id, self._clock.now_ms())
            if not one.found:
                self._mender.forgive(version.id)
        if wrong or not one.next or self._clock.monotonic() - self._saved >= SAVE_S:
            await self._save()
        return read

    def _compare(self, version: VersionId, manifest: m.Manifest, first: int) -> tuple[int, int, list[int]]:
        """Return where to go on, how much was read, and which blocks are wrong; in a thread."""
        reader = Reader(self._images.path(version))
        read, wrong, index = 0, [], first
        try:
            while index < manifest.blocks and read < STRETCH_BYTES:
                block = manifest.block(index)
                if not reader.right(block):
                    wrong.append(index)
                read += block.length
                index += 1
        finally:
            reader.close()
        return index, read, wrong

    async def _mend(self, version: Version, wrong: Sequence[int]) -> None:
        manifest = await self._in_thread(self._images.manifest, version.id)
        one = self._passes.of[version.id]
        # What is remembered lies on that disk, too.
        one.bad = [index for index in one.bad if index < manifest.blocks]
        for index in wrong:
            if index >= manifest.blocks:
                continue
            block = manifest.block(index)
            source = await self._mender.put_right(version, block)
            if index in one.bad and source is not None:
                one.bad.remove(index)
            one.note(index, offset=block.offset, mended=source is not None)
            self._note(version, block.offset, source)

    def _note(self, version: Version, offset: int, source: ServerId | None) -> None:
        path = self._images.path(version.id)
        told = {"version": version.id, "file": str(path), "offset": offset}
        if source is None:
            logger.error("a block of an image went bad on this disk and nobody has it right", extra=told)
            return
        logger.error("a block of an image went bad on this disk and was repaired", extra={**told, "from": source})
        mended = self._mended.setdefault(version.id, _Mended(offset, self._clock.monotonic()))
        mended.blocks += 1
        mended.offset = min(mended.offset, offset)
        mended.sources.add(source)

    async def _tell(self, here: Mapping[VersionId, Version], now: float) -> None:
        """Tell the grid what was found; mended blocks are gathered, so that a dying disk doesn't fill the history."""
        try:
            for version, liar in sorted(self._mender.liars - self._accused):
                if version in here:
                    await self._told.lied(here[version], liar)
                    self._accused.add((version, liar))
            for version, mended in list(self._mended.items()):
                over = not self._passes.of[version].next if version in self._passes.of else True
                if version in here and (over or now - mended.since >= RETRY_S):
                    del self._mended[version]
                    sources = sorted(source for source in mended.sources if source)
                    try:
                        await self._told.repaired(
                            here[version], offset=mended.offset, blocks=mended.blocks, sources=sources
                        )
                    except Unavailable:
                        self._mended[version] = mended
                        raise
            for version, one in self._passes.of.items():
                if self._said.get(version, 0) != len(one.bad) and version in here:
                    await self._told.damaged(here[version], offset=one.first_byte, blocks=len(one.bad))
                    self._said[version] = len(one.bad)
        except KmgrError as error:
            logger.info("the grid was not told of damage", extra={"cause": error.message})

    async def _given(self, _peer: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer with one block, if it is right here."""
        version = VersionId(str(body.get("version", "")))
        try:
            return await give(self._images, version, body.get("offset"))
        except NotFound:
            self._passes.ask(version)
            raise

    async def _asked(self, peer: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        version = VersionId(str(body.get("version", "")))
        logger.warning("a server says that it got wrong bytes from here", extra={"server": peer, "version": version})
        self._passes.ask(version)
        return {}

    async def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            self._passes = await self._in_thread(_remembered, self._images)

    async def _save(self) -> None:
        self._saved = self._clock.monotonic()
        data = json.dumps(scrubbed.spelled(self._passes)).encode()
        try:
            await self._in_thread(_remember, self._images, data)
        except OSError as error:  # a full disk: it is only read again
            logger.info("how far the reading-again is was not saved", extra={"cause": str(error)})

    async def _in_thread(self, work: Callable[..., T], *values: Any) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="scrub", initializer=_be_last)
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *values))


def _remembered(images: Images) -> scrubbed.Passes:
    try:
        return scrubbed.read(json.loads((images.folder / FILE).read_bytes()))
    except (OSError, ValueError):
        return scrubbed.Passes()


def _remember(images: Images, data: bytes) -> None:
    fresh = images.folder / f"{FILE}-new"
    write_synced(fresh, data)
    fresh.replace(images.folder / FILE)


def _be_last() -> None:
    """Let disk and processor serve this thread when nobody else wants anything."""
    thread = threading.get_native_id()
    try:
        os.setpriority(os.PRIO_PROCESS, thread, 19)
        psutil.Process(thread).ionice(psutil.IOPRIO_CLASS_IDLE)
    except (OSError, psutil.Error):
        logger.debug("the scrub could not lower its priority")


def _blocks(count: int) -> str:
    return "one block" if count == 1 else f"{count} blocks"
