"""What is looked at before a server joins: everything at once, while nothing has changed yet.

`stop` means that the join would fail or make a member that cannot work; `warn`
is worth a look and stops nothing.

Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kmgr.errors import Refused
from kmgr.grid.contacts import split_address
from kmgr.grid.model import Server, ServerRole, ServerState
from kmgr.ids import ServerId

CLOCKS_DIFFER_MS = 60_000


class Severity(StrEnum):
    """What a finding means for the join."""

    STOP = "stop"
    WARN = "warn"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the preflight noticed, in words that say what to do."""

    severity: Severity
    about: str
    text: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a newcomer tells about itself."""

    server: ServerId
    name: str
    grid_address: str
    web_address: str
    role: ServerRole
    version: str
    now_ms: int
    disk_free_mib: int


@dataclass(frozen=True, slots=True)
class GridSide:
    """What the grid knows: its servers, its version, its clock, the room that its golden images in use need."""

    servers: Sequence[Server]
    version: str
    now_ms: int
    images_mib: int


class PreflightStopped(Refused):
    """The join cannot go on; `findings` are all that was noticed, warnings included."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = ordered(findings)
        stops = [finding.text for finding in self.findings if finding.severity is Severity.STOP]
        super().__init__(f"this server cannot join yet, nothing was changed: {'; '.join(stops)}", code="preflight")


def stop(about: str, text: str) -> Finding:
    """Return a finding that ends the join."""
    return Finding(Severity.STOP, about, text)


def warn(about: str, text: str) -> Finding:
    """Return a finding that is worth a look."""
    return Finding(Severity.WARN, about, text)


def ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings with those that stop the join first."""
    return tuple(sorted(findings, key=lambda finding: finding.severity is Severity.WARN))


def stops(findings: Sequence[Finding]) -> bool:
    """Tell whether any finding ends the join."""
    return any(finding.severity is Severity.STOP for finding in findings)


def judge(newcomer: Candidate, grid: GridSide) -> tuple[Finding, ...]:
    """Return everything that the grid has to say about a newcomer."""
    found = [
        _version(newcomer, grid),
        *_addresses(newcomer),
        *_clashes(newcomer, grid.servers),
        _room(newcomer, grid),
        _clocks(newcomer, grid),
    ]
    return tuple(finding for finding in found if finding is not None)


def spelled(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return findings as plain values."""
    return [
        {"severity": finding.severity.value, "about": finding.about, "text": finding.text} for finding in findings
    ]


def read(raw: Sequence[Mapping[str, str]]) -> tuple[Finding, ...]:
    """Read what `spelled` wrote."""
    return tuple(Finding(Severity(one["severity"]), one["about"], one["text"]) for one in raw)


def _version(newcomer: Candidate, grid: GridSide) -> Finding | None:
    if newcomer.version == grid.version:
        return None
    cure = f"install {grid.version} on the new server"
    return stop("version", f"the new server runs kmgr {newcomer.version}, the grid runs {grid.version}: {cure}")


def _addresses(newcomer: Candidate) -> list[Finding]:
    found = []
    for words, address in (("grid address", newcomer.grid_address), ("web address", newcomer.web_address)):
        try:
            split_address(address)
        except ValueError as error:
            found.append(stop("address", f"the new server's {words} is wrong: {error}"))
    return found


def _clashes(newcomer: Candidate, servers: Sequence[Server]) -> list[Finding]:
    found = []
    for server in servers:
        if server.id == newcomer.server and server.state is ServerState.JOINING:
            continue  # itself, at an earlier try that was cut off
        if server.name == newcomer.name:
            cure = "choose another name, or remove the old server first if this one replaces it"
            found.append(stop("name", f"the name {newcomer.name!r} is taken by server {server.name!r}: {cure}"))
        if server.grid_address == newcomer.grid_address:
            cure = "each server needs its own, reachable from the others: set grid_address or grid_port"
            text = f"the grid address {newcomer.grid_address} is taken by server {server.name!r}: {cure}"
            found.append(stop("address", text))
        elif server.web_address == newcomer.web_address:
            text = (
                f"the web address {newcomer.web_address} is that of server {server.name!r} as well: set web_address"
            )
            found.append(warn("address", text))
    return found


def _room(newcomer: Candidate, grid: GridSide) -> Finding | None:
    if newcomer.role is ServerRole.WITNESS or newcomer.disk_free_mib >= grid.images_mib:
        return None
    return stop(
        "disk",
        f"the golden images in use need {grid.images_mib} MiB, the new server's data folder has room for "
        f"{newcomer.disk_free_mib} MiB: put it on a larger disk (--data)",
    )


def _clocks(newcomer: Candidate, grid: GridSide) -> Finding | None:
    ahead = newcomer.now_ms - grid.now_ms
    if abs(ahead) <= CLOCKS_DIFFER_MS:
        return None
    which = "ahead of" if ahead > 0 else "behind"
    return warn(
        "clock",
        f"the new server's clock is {_duration(abs(ahead) // 1000)} {which} the grid's: it joins all the same, but "
        "times in its log and history will be wrong. Set it right and keep it so, with chrony for example",
    )


def _duration(seconds: int) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} seconds"
