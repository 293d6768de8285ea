"""Grid-wide settings: one table of name, kind, default, limits and meaning.

The values live in the replicated `settings` table; this file knows which exist.
Pure: reading them from a database is `grid.queries.settings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kmgr.errors import Refused
from kmgr.whole import is_whole, must_be


@dataclass(frozen=True, slots=True)
class Setting:
    """One whole-number setting; the unit is in its name."""

    default: int
    least: int
    most: int
    help: str


SETTINGS: Mapping[str, Setting] = {
    "heartbeat_ms": Setting(1_000, 200, 5_000, "how often servers report to each other"),
    "lost_after_ms": Setting(6_500, 2_000, 600_000, "silence after which a server counts as lost"),
    "replace_voter_after_s": Setting(
        600, 10, 86_400, "absence after which another member votes in a lost one's place"
    ),
    "island_after_ms": Setting(
        4_000, 2_000, 600_000, "time without a majority after which a server goes on by itself"
    ),
    "session_hours": Setting(12, 1, 168, "how long a log-in to portal and console lasts when it is not used"),
    "desktops_per_user": Setting(0, 0, 1_000, "how many desktops one person may have at once; 0 means no limit"),
    "keep_for_loss": Setting(
        1, 0, 1, "1: no more desktops stand by than the loss of any one server leaves memory for; 0: as many as fit"
    ),
    "login_tries": Setting(8, 3, 100, "wrong passwords in a row after which an account waits"),
    "login_wait_s": Setting(60, 1, 86_400, "how long an account waits after too many wrong passwords"),
    "build_failures": Setting(3, 1, 100, "failed desktops in a row after which a template's refill stops"),
    "build_timeout_s": Setting(300, 30, 3_600, "time a desktop has from its start until its guest answers"),
    "begin_timeout_s": Setting(
        600, 30, 86_400, "time a server has to begin with a desktop that it was given, or to remove one"
    ),
    "image_timeout_s": Setting(3_600, 60, 604_800, "how long a desktop waits for its golden image to be copied"),
    "keep_versions": Setting(3, 0, 1_000, "former versions of a golden image that are kept to go back to"),
    "keep_days": Setting(30, 0, 3_650, "how long a former version is kept at least after a newer one was imported"),
    "scrub_days": Setting(7, 0, 365, "how often every server reads its images and safe copies again; 0 means never"),
    "scrub_mib_s": Setting(16, 1, 10_000, "how much a server reads for that at most"),
    "image_mbit_s": Setting(
        0, 0, 400_000, "how fast a server may send images and safe copies (and receive images), Mbit/s; 0: no limit"
    ),
    "image_mbit_s_beside_desktops": Setting(
        0, 0, 400_000, "the same while somebody works at a desktop there; 0 means that only image_mbit_s counts"
    ),
    "copy_target_s": Setting(60, 10, 3_600, "how far a personal desktop's safe copy may be behind"),
    "upload_hours": Setting(24, 1, 720, "how long an unfinished upload is kept, to go on with it"),
    "import_own_addresses": Setting(
        0, 0, 1, "1: golden images may be fetched from the server's own and link-local addresses too"
    ),
    "calm_after_election_ms": Setting(3_000, 0, 600_000, "how long a new leader waits before it moves desktops"),
}


def check(name: str, value: object) -> int:
    """Return the value if it may be stored under `name`; raise `Refused` with the reason otherwise."""
    setting = SETTINGS.get(name)
    if setting is None:
        raise Refused(f"there is no setting {name!r}; known are {', '.join(sorted(SETTINGS))}")
    if not is_whole(value, setting.least, setting.most):
        raise Refused(f"{name} {must_be(value, setting.least, setting.most)} ({setting.help})")
    return value


def problems(values: Mapping[str, int]) -> list[str]:
    """Name the inequalities between settings that do not hold."""
    found = []
    if values["lost_after_ms"] < 3 * values["heartbeat_ms"]:
        found.append("lost_after_ms must be at least three times heartbeat_ms, or a late heartbeat loses a server")
    if 1000 * values["replace_voter_after_s"] < values["lost_after_ms"]:
        found.append("replace_voter_after_s must be at least lost_after_ms: only a lost voter is replaced")
    return found
