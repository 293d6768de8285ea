"""One reading of the state, as the agent of images acts on it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlite_utils import Database

from kmgr.grid import queries as grid_queries
from kmgr.grid.model import PLACEABLE, RUNNING, Server, Vitals
from kmgr.ids import ImageId, ServerId, VersionId
from kmgr.replica import queries
from kmgr.replica.budget import bytes_per_s
from kmgr.replica.copies import Spot, keepers, may_drop, order
from kmgr.replica.model import ALL_SERVERS, Holding, Image, Uses, Version, VersionState
from kmgr.replica.scrub import Rules


@dataclass(frozen=True, slots=True)
class Seen:
    """The versions in the order of their making, who has and who needs them. `away` servers were lost long ago."""

    server: ServerId
    applied: int
    majority: bool
    versions: Mapping[VersionId, Version]
    images: Mapping[ImageId, Image]
    holdings: tuple[Holding, ...]
    servers: Mapping[ServerId, Server]
    uses: Uses
    rules: Rules
    bytes_per_s: int
    away: frozenset[ServerId]
    spare_bytes: Mapping[ServerId, int]

    @property
    def held(self) -> frozenset[VersionId]:
        """The versions that this server is believed to hold."""
        return frozenset(one.version for one in self.holdings if one.server == self.server)

    def name(self, version: VersionId) -> str:
        """Return how a version is called to people."""
        one = self.versions[version]
        image = self.images.get(one.image)
        return f"version {one.number} of {image.name if image else one.image!r}"

    @property
    def names(self) -> Mapping[VersionId, str]:
        """How all versions are called."""
        return {version: self.name(version) for version in self.versions}

    def wanted(self) -> frozenset[VersionId]:
        """Return the versions that this server should have."""
        spots = [
            Spot(
                one.id,
                counts=one.id not in self.away,
                takes=one.state in PLACEABLE,
                spare_bytes=self.spare_bytes.get(one.id),
            )
            for one in self.servers.values()
            if not one.is_witness
        ]
        holdings: dict[VersionId, list[Holding]] = {}
        for one in self.holdings:
            holdings.setdefault(one.version, []).append(one)
        found = set()
        for version in self.versions.values():
            needing = self.uses.desktops.get(version.id, {})
            kept = keepers(version, self._copies(version), spots, holdings.get(version.id, ()), needing)
            # Who is not in the grid's list yet is about to be.
            if self.server in kept or self._copies(version) == ALL_SERVERS:
                found.add(version.id)
        return frozenset(found)

    def lacking(self, here: Collection[VersionId]) -> tuple[Version, ...]:
        """Return what this server should bring, the most urgent first."""
        wanted = self.wanted()
        some = [v for v in self.versions.values() if v.id in wanted and v.id not in here]
        return order((v for v in some if v.state is VersionState.READY), self.uses, self.server)

    def superfluous(self, here: Collection[VersionId]) -> tuple[Version, ...]:
        """Return what this server has and may give up; the log will look again."""
        if all(one.copies == ALL_SERVERS for one in self.images.values()):
            return ()
        wanted = self.wanted()
        running = {one.id for one in self.servers.values() if one.state in RUNNING}
        counted = [one for one in self.holdings if one.server in running]
        return tuple(
            v
            for v in self.versions.values()
            if v.id in here
            and v.id not in wanted
            and not may_drop(v.id, self.server, self._copies(v), counted, self.uses)
        )

    def _copies(self, version: Version) -> int:
        image = self.images.get(version.image)
        return image.copies if image else ALL_SERVERS


def look(
    db: Database,
    *,
    server: ServerId,
    applied: int,
    majority: bool,
    uses: Uses,
    away: Collection[ServerId],
    board: Mapping[ServerId, Vitals],
    own_mbit_s: int = 0,
) -> Seen:
    """Read the state and the last heartbeats."""
    rules = grid_queries.settings(db)
    return Seen(
        server=server,
        applied=applied,
        majority=majority,
        versions={one.id: one for one in queries.versions(db)},
        images={one.id: one for one in queries.images(db)},
        holdings=queries.holdings(db),
        servers={one.id: one for one in grid_queries.servers(db)},
        uses=uses,
        rules=Rules(rules["scrub_days"], rules["scrub_mib_s"]),
        bytes_per_s=limit(rules, uses, server, own_mbit_s=own_mbit_s),
        away=frozenset(away),
        spare_bytes={one: told for one, vitals in board.items() if (told := _spare(vitals)) is not None},
    )


def limit(rules: Mapping[str, int], uses: Uses, server: ServerId, *, own_mbit_s: int) -> int:
    """Return how many bytes per second a server may send, and receive, of images now; 0 for no limit."""
    return bytes_per_s(
        mbit_s=rules["image_mbit_s"],
        beside_desktops_mbit_s=rules["image_mbit_s_beside_desktops"],
        in_use=server in uses.at_work,
        own_mbit_s=own_mbit_s,
    )


def _spare(vitals: Vitals) -> int | None:
    told = vitals.extra.get("images_spare_bytes")
    return told if isinstance(told, int) and not isinstance(told, bool) else None
