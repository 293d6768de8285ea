"""How many desktops a person may have at once.

Asked where a desktop is given, in the log: two servers that are asked at the same
moment give no more than one would. What somebody has already is always theirs to open.

Deterministic.
"""

from sqlite_utils import Database

from kmgr.grid.model import ServerState
from kmgr.grid.queries import settings
from kmgr.grid.rows import rows
from kmgr.provision.model import DesktopState as S

SETTING = "desktops_per_user"


def why_not_another(db: Database, user: str) -> str:
    """Say why a person gets no further desktop, empty if they may have one.

    Pooled desktops of lost servers are nobody's any more; a personal one stays its user's wherever its server is.
    """
    most = settings(db)[SETTING]
    if not most:
        return ""
    held = rows(
        db,
        "select d.name from desktops d join servers s on s.id = d.server where d.user = ? and d.state <> ?"
        " and d.purpose = 'use' and (d.kind = 'personal' or (d.state = ? and s.state in (?, ?))) order by d.name",
        [user, S.RETIRED, S.IN_USE, ServerState.UP, ServerState.DRAINING],
    )
    if len(held) < most:
        return ""
    names = ", ".join(str(row["name"]) for row in held)
    many = "one desktop" if most == 1 else f"{most} desktops"
    return f"You have {names}, and everybody may have {many} at once: give one back first, or ask your administrator."
