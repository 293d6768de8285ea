"""Replicated changes about how many desktops people may have at once: one applier per command."""

from collections.abc import Mapping

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.rows import one, scalar
from kmgr.provision.allowance import Whom
from kmgr.whole import is_whole, must_be

MOST = 100_000
_LONGEST = 256
_WORDS = {Whom.USER: "{}", Whom.MEMBER: "each member of {}", Whom.GROUP: "the group {} together"}


def set_quota(db: Database, command: Command) -> Outcome:
    """Say how many desktops somebody may have at once. body: whom, subject, template (empty: of all), most."""
    body = command.body
    problem = _problem(db, command)
    if problem:
        return Rejected("refused", problem)
    if not is_whole(body["most"], 0, MOST):
        return Rejected("refused", f"the number of desktops {must_be(body['most'], 0, MOST)}")
    db.execute(
        "insert into quotas (whom, subject, template, most) values (?, ?, ?, ?)"
        " on conflict (whom, subject, template) do update set most = excluded.most",
        [*_key(command), body["most"]],
    )
    note(db, command, "quota", str(body["subject"]), f"{_who(db, command)} may have {body['most']} at once")
    return Applied()


def drop_quota(db: Database, command: Command) -> Outcome:
    """Say nothing about somebody any more. body: whom, subject, template."""
    problem = _problem(db, command)
    if problem:
        return Rejected("refused", problem)
    gone = db.execute("delete from quotas where whom = ? and subject = ? and template = ?", _key(command)).rowcount
    if gone:
        note(db, command, "quota", str(command.body["subject"]), f"{_who(db, command)} have no quota any more")
    return Applied()


def _problem(db: Database, command: Command) -> str:
    body = command.body
    if body["whom"] not in list(Whom):
        return f"a quota is for {', '.join(Whom)}, not for {body['whom']!r}"
    if not isinstance(body["subject"], str) or not 0 < len(body["subject"]) <= _LONGEST:
        return f"a quota is for somebody: a name of at most {_LONGEST} characters"
    if body["template"] and body["whom"] != Whom.GROUP:
        return "of each template a person has one desktop at most: say how many they may have of all"
    if body["template"] and one(db, "select id from templates where id = ?", [body["template"]]) is None:
        return f"there is no template {body['template']}"
    return ""


def _key(command: Command) -> list[str]:
    body = command.body
    # Groups are compared without regard to large and small letters, as assignments are.
    subject = body["subject"] if body["whom"] == Whom.USER else body["subject"].casefold()
    return [body["whom"], subject, body["template"] or ""]


def _who(db: Database, command: Command) -> str:
    whom, subject, template = _key(command)
    name = scalar(db, "select name from templates where id = ?", [template], default="")
    return f"desktops{f' of {name}' if name else ''}: {_WORDS[Whom(whom)].format(subject)}"


APPLIERS: Mapping[str, Applier] = {"quota.set": set_quota, "quota.drop": drop_quota}
