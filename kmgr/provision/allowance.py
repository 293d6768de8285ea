"""How many desktops people may have at once: each person, each member of a group, and a group together.

Asked where a desktop is given, in the log: two servers that are asked at the same
moment give no more than one would. What somebody has already is always theirs to open.
Groups are those that a person had when they claimed: a directory is not asked here.

Deterministic.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlite_utils import Database

from kmgr.grid.model import ServerState
from kmgr.grid.queries import settings
from kmgr.grid.rows import rows, scalar
from kmgr.provision.model import DesktopState as S

# What everybody may have whom no quota names.
SETTING = "desktops_per_user"
_MOST_GROUPS = 500


class Whom(StrEnum):
    """Whom a quota is for."""

    USER = "user"  # this person
    MEMBER = "member"  # each member of this group
    GROUP = "group"  # all members of this group together


@dataclass(frozen=True, slots=True)
class Quota:
    """At most so many desktops at once for somebody. A group together may have one for each `template`."""

    whom: Whom
    subject: str
    template: str
    most: int


def quotas(db: Database) -> tuple[Quota, ...]:
    """Return the quotas, by whom they are for."""
    found = rows(db, "select * from quotas order by whom, subject, template")
    return tuple(Quota(Whom(row["whom"]), row["subject"], row["template"], int(row["most"])) for row in found)


def groups_of(told: Any) -> frozenset[str]:
    """Return the groups that a claim names, as they are compared; an older server names none."""
    texts = [one.casefold() for one in told if isinstance(one, str)] if isinstance(told, list | tuple) else []
    return frozenset(texts[:_MOST_GROUPS])


def note_groups(db: Database, desktop: str, groups: Collection[str]) -> None:
    """Note the groups of the person who got a desktop."""
    db.execute("delete from claim_groups where desktop = ?", [desktop])
    for group in sorted(groups):
        db.execute("insert into claim_groups (desktop, name) values (?, ?)", [desktop, group])


def why_not_another(db: Database, user: str, template: str = "", groups: Collection[str] = ()) -> str:
    """Say why a person gets no further desktop of a template, empty if they may have one.

    Pooled desktops of lost servers are nobody's any more; a personal one stays its user's wherever its server is.
    """
    known = quotas(db)
    return _why_not_this_person(db, user, groups, known) or _why_not_their_groups(db, template, groups, known)


def _why_not_this_person(db: Database, user: str, groups: Collection[str], known: Collection[Quota]) -> str:
    own = [one.most for one in known if one.whom is Whom.USER and one.subject == user]
    member = [one.most for one in known if one.whom is Whom.MEMBER and one.subject in groups]
    usual = settings(db)[SETTING]
    if not own and not member and not usual:
        return ""
    # What is said of a person counts before what is said of their groups, of which the widest counts.
    most = own[0] if own else max(member) if member else usual
    held = rows(db, f"{_HELD.format('d.name')} and d.user = ? order by d.name", [*_HELD_VALUES, user])
    if len(held) < most:
        return ""
    who = "you" if own else "everybody in your groups" if member else "everybody"
    if not most:
        return f"{who.capitalize()} may have no desktop at present: ask your administrator."
    names = ", ".join(str(row["name"]) for row in held)
    many = "one desktop" if most == 1 else f"{most} desktops"
    return f"You have {names}, and {who} may have {many} at once: give one back first, or ask your administrator."


def _why_not_their_groups(db: Database, template: str, groups: Collection[str], known: Collection[Quota]) -> str:
    for one in known:
        if one.whom is not Whom.GROUP or one.subject not in groups or one.template not in ("", template):
            continue
        values = [*_HELD_VALUES, one.template, one.template, one.subject]
        held = scalar(db, f"{_HELD.format('count(*)')} {_OF_GROUP}", values)
        if int(held) >= one.most:
            name = scalar(db, "select name from templates where id = ?", [one.template], default="")
            of = f" of {name}" if name else ""
            return (
                f"The group {one.subject} has {held} desktops{of}, and may have {one.most} at once: try again when "
                "somebody has given one back, or ask your administrator."
            )
    return ""


_HELD = (
    "select {} from desktops d join servers s on s.id = d.server where d.user is not null and d.state <> ?"
    " and d.purpose = 'use' and (d.kind = 'personal' or (d.state = ? and s.state in (?, ?)))"
)
_OF_GROUP = (
    "and (? = '' or d.template = ?) and exists (select 1 from claim_groups g where g.desktop = d.id and g.name = ?)"
)
_HELD_VALUES = (S.RETIRED, S.IN_USE, ServerState.UP, ServerState.DRAINING)
