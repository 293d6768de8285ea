"""Replicated changes of a template's versions: publish, canary, go back, tags, expiry.

Rule 1: nobody who works is disturbed: all of this is about what new desktops are made from.
Rule 2: one canary per template; whatever is published meanwhile ends it.
Rule 3: a stamp that a person chose is compared with the command's own, so all servers agree.
"""

from collections.abc import Mapping
from typing import Any

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.rows import Row, one, scalar
from kmgr.ids import VersionId
from kmgr.replica.model import VersionState
from kmgr.templates import canary
from kmgr.templates.install_queries import installs, kind_of
from kmgr.templates.model import ImageKind
from kmgr.templates.queries import template_of_row
from kmgr.templates.version_queries import template_versions
from kmgr.templates.versions import OVER, Stand, before, tag_problem
from kmgr.whole import is_whole, must_be


def publish(db: Database, command: Command) -> Outcome:
    """Make new desktops from another version: all at once, or a few first that are watched (a canary).

    body: template, version, notes?, canary? (how many) or canary_percent? (of the standbys), watch_s?, patience_s?,
    image? (another golden image that the template changes to)
    """
    row = template_row(db, command)
    if isinstance(row, Rejected):
        return row
    body, version = command.body, str(command.body["version"])
    image = str(body.get("image", row["image"]))
    wanted = _canary_wanted(row, body)
    problem = version_problem(db, image, version) or (wanted if isinstance(wanted, str) else "")
    problem = problem or _expiry_passed(db, row, version, command.at) or _notes_problem(body.get("notes", ""))
    if problem:
        return Rejected("refused", problem)
    running = one(db, "select * from canaries where template = ?", [row["id"]])
    if isinstance(wanted, int) and row["version"] == version:
        return Rejected("refused", f"new desktops of {row['name']} are made from that version already")
    if row["version"] == version and not row["broken_cause"] and not running:
        return Applied()
    if isinstance(wanted, int) and row["id"] not in installs(db):  # of the first version there is nobody to spare
        return _begin(db, command, row, version, size=wanted)
    _end_canary(db, row, running, because="another version was published meanwhile")
    record(db, command, row["id"], version, str(body.get("notes", "")))
    _become_default(db, command, row, version, image)
    note(db, command, "template", row["id"], f"template {row['name']} published version {_number(db, version)}")
    return Applied()


def canary_passed(db: Database, command: Command) -> Outcome:
    """A canary did well, or a person has seen enough: its version becomes the default. body: template, version."""
    found = _canary(db, command)
    if isinstance(found, Rejected):
        return found
    row, running = found
    image = _image_of(db, running["version"])
    problem = version_problem(db, image, running["version"])
    if problem:
        return Rejected("refused", problem)
    db.execute("delete from canaries where template = ?", [row["id"]])
    _become_default(db, command, row, running["version"], image)
    number = _number(db, running["version"])
    note(db, command, "template", row["id"], f"template {row['name']}: version {number} passed its canary")
    return Applied()


def canary_stopped(db: Database, command: Command) -> Outcome:
    """A canary failed, or a person stops it. body: template, version, step, cause, by_hand? (no alarm then)."""
    found = _canary(db, command)
    if isinstance(found, Rejected):
        return found
    row, running = found
    step, cause = str(command.body["step"]), str(command.body["cause"])
    _stop(db, row["id"], running["version"], step, cause)
    number, old = _number(db, running["version"]), _number(db, row["version"])
    why = f"at {step}: {cause}" if step else cause
    text = f"template {row['name']}: version {number} was stopped by its canary {why}. Version {old} goes on"
    by_hand = bool(command.body.get("by_hand"))
    note(db, command, "template" if by_hand else "alarm", row["id"], text)
    return Applied()


def roll_back(db: Database, command: Command) -> Outcome:
    """Go back to the default before, or to a given version; nobody is given the present one any more.

    body: template, version?. While a canary goes on and no version is given, that is what ends.
    """
    row = template_row(db, command)
    if isinstance(row, Rejected):
        return row
    running = one(db, "select * from canaries where template = ?", [row["id"]])
    wanted = command.body.get("version")
    if running is not None and wanted is None:
        _stop(db, row["id"], running["version"], "", f"{command.by} stopped it")
        number = _number(db, running["version"])
        note(
            db, command, "template", row["id"], f"template {row['name']}: the canary of version {number} was stopped"
        )
        return Applied({"version": row["version"]})
    target = _target(db, row, wanted)
    problem = "" if target else f"template {row['name']} has no version to go back to: publish another one"
    image = _image_of(db, target)
    problem = problem or version_problem(db, image, target)
    problem = problem or _expiry_passed(db, row, target, command.at)
    if problem:
        return Rejected("refused", problem)
    if target == row["version"]:
        return Applied({"version": target})
    _end_canary(db, row, running, because=f"{command.by} went back to another version")
    record(db, command, row["id"], row["version"], "")
    _set_stand(db, row["id"], row["version"], Stand.WITHDRAWN, cause=f"{command.by} went back to another version")
    record(db, command, row["id"], target, "")
    _become_default(db, command, row, target, image)
    left, now = _number(db, row["version"]), _number(db, target)
    note(db, command, "template", row["id"], f"template {row['name']} went back from version {left} to {now}")
    return Applied({"version": target})


def tag(db: Database, command: Command) -> Outcome:
    """Name a version of a template; the tag leaves whichever had it. body: template, tag, version."""
    row = template_row(db, command)
    if isinstance(row, Rejected):
        return row
    name, version = command.body["tag"], str(command.body["version"])
    problem = tag_problem(name)
    if problem:
        return Rejected("refused", problem)
    if not _is_of(db, row, version):
        return Rejected("refused", f"template {row['name']} never published a version {version}")
    db.execute(
        "insert into template_tags (template, tag, version) values (?, ?, ?)"
        " on conflict (template, tag) do update set version = excluded.version",
        [row["id"], name, version],
    )
    note(db, command, "template", row["id"], f"template {row['name']}: version {_number(db, version)} is {name!r}")
    return Applied()


def untag(db: Database, command: Command) -> Outcome:
    """Take a tag away. body: template, tag."""
    row = template_row(db, command)
    if isinstance(row, Rejected):
        return row
    name = str(command.body["tag"])
    gone = db.execute("delete from template_tags where template = ? and tag = ?", [row["id"], name]).rowcount
    if gone:
        note(db, command, "template", row["id"], f"template {row['name']}: the tag {name!r} was taken away")
    return Applied()


def set_expiry(db: Database, command: Command) -> Outcome:
    """Say when a version ends: no new desktops from `soft_at` on, none at all from `hard_at`; null: never.

    body: template, version, soft_at, hard_at
    """
    row = template_row(db, command)
    if isinstance(row, Rejected):
        return row
    version = str(command.body["version"])
    soft, hard = command.body["soft_at"], command.body["hard_at"]
    problem = _dates_problem(soft, hard)
    if not _is_of(db, row, version):
        problem = problem or f"template {row['name']} never published a version {version}"
    if problem:
        return Rejected("refused", problem)
    record(db, command, row["id"], version, "")
    db.execute(
        "update template_versions set soft_at = ?, hard_at = ? where template = ? and version = ?",
        [soft, hard, row["id"], version],
    )
    known = one(db, "select * from template_versions where template = ? and version = ?", [row["id"], version])
    if known is None:
        return Applied()
    if known["stand"] in (Stand.EXPIRED, Stand.ENDED) and _due(known, command.at) is None:
        _set_stand(db, row["id"], version, Stand.PUBLISHED)
        if row["version"] == version:
            _set_cause(db, command, row["id"], "")
    note(db, command, "template", row["id"], f"template {row['name']}: the expiry of {known['number']} was changed")
    return Applied()


def expire(db: Database, command: Command) -> Outcome:
    """A version's time has come. body: template, version, stand (expired or ended): what is believed."""
    row = template_row(db, command)
    if isinstance(row, Rejected):
        return row
    version, stand = str(command.body["version"]), command.body["stand"]
    known = one(db, "select * from template_versions where template = ? and version = ?", [row["id"], version])
    if known is None or _due(known, command.at) != stand:
        return Rejected("conflict", f"the time of version {version} has not come")
    if known["stand"] == stand or known["stand"] in OVER:
        return Applied()
    running = one(db, "select * from canaries where template = ? and version = ?", [row["id"], version])
    _end_canary(db, row, running, because="its time was over")
    _set_stand(db, row["id"], version, Stand(stand))
    what = "no new desktops are made of it" if stand == Stand.EXPIRED else "its desktops go when their users log out"
    text = f"template {row['name']}: version {known['number']} has expired, {what}"
    if row["version"] == version:
        _set_cause(db, command, row["id"], f"version {known['number']} has expired: publish another one")
    note(db, command, "alarm" if row["version"] == version else "template", row["id"], text)
    return Applied()


def record(db: Database, command: Command, template: str, version: str, notes: str) -> None:
    """Note that a template published a version, if that isn't noted yet; notes that are given replace others."""
    made = one(db, "select number, notes from versions where id = ?", [version]) or {"number": 0, "notes": ""}
    db.execute(
        "insert into template_versions (template, version, number, notes, author, at, stand, step, cause, default_at,"
        " soft_at, hard_at) values (?, ?, ?, ?, ?, ?, ?, '', '', null, null, null)"
        " on conflict (template, version) do nothing",
        [template, version, made["number"], notes or made["notes"], command.by, command.at, Stand.PUBLISHED],
    )
    if notes:
        db.execute(
            "update template_versions set notes = ? where template = ? and version = ?", [notes, template, version]
        )


def first_version(db: Database, command: Command, template: str, version: str) -> None:
    """Note the version that a new template begins with."""
    record(db, command, template, version, "")
    _mark_default(db, command, template, version)


def count_failure(db: Database, template: str, version: str, step: str, cause: str) -> None:
    """Note that a desktop of a version broke, if its canary goes on: the leader judges."""
    db.execute(
        "update canaries set failed = failed + 1, step = ?, cause = ? where template = ? and version = ?",
        [step, cause, template, version],
    )


def made_now(db: Database, template: Row) -> tuple[str, ...]:
    """Return the versions that new desktops of a template may have now: the default unless stopped, the canary."""
    running = one(db, "select version from canaries where template = ?", [template["id"]])
    default = (
        () if template["broken_cause"] or expired(db, template["id"], template["version"]) else (template["version"],)
    )
    return (*default, *((running["version"],) if running else ()))


def forget_template(db: Database, template: str) -> None:
    """Drop all that is known of a template's versions, with the template."""
    for table in ("template_versions", "template_tags", "canaries"):
        db.execute(f"delete from {table} where template = ?", [template])  # noqa: S608 - own names
    db.execute("update templates set parent = '' where parent = ?", [template])


def expired(db: Database, template: str, version: str) -> bool:
    """Tell whether no new desktops are made of a template's version because its time is over."""
    row = one(db, "select stand from template_versions where template = ? and version = ?", [template, version])
    return row is not None and row["stand"] in (Stand.EXPIRED, Stand.ENDED)


def version_problem(db: Database, image: str, version: str) -> str:
    """Say why a version of a golden image cannot be used, empty if it can."""
    row = one(db, "select image, state from versions where id = ?", [version])
    if row is None or row["image"] != image:
        return f"the golden image has no version {version}: choose one of its versions"
    if row["state"] != VersionState.READY:
        return f"version {version} is {row['state']}: choose one that is ready"
    if kind_of(db, image) is ImageKind.ISO:
        return "an installer (ISO) is not a disk that desktops can have: install from it"
    if kind_of(db, image) is ImageKind.DRIVERS:
        return "a CD with drivers (ISO) is not a disk that desktops can have: choose it beside an installer"
    return ""


def template_row(db: Database, command: Command) -> Row | Rejected:
    """Return the template that a command is about, or the refusal that says there is none."""
    row = one(db, "select * from templates where id = ?", [command.body["template"]])
    return row or Rejected("not_found", f"there is no template {command.body['template']}")


def _begin(db: Database, command: Command, row: Row, version: str, *, size: int) -> Outcome:
    body = command.body
    if not row["enabled"]:
        return Rejected(
            "refused", f"template {row['name']} is switched off: publish without a canary, or switch it on"
        )
    running = one(db, "select * from canaries where template = ?", [row["id"]])
    if running is not None and running["version"] == version:
        return Rejected("conflict", f"the canary of that version is under way in template {row['name']}")
    _end_canary(db, row, running, because="another version was published meanwhile")
    record(db, command, row["id"], version, str(body.get("notes", "")))
    _set_stand(db, row["id"], version, Stand.CANARY)
    db.execute(
        "insert into canaries (template, version, size, watch_s, patience_s, at, by, failed, step, cause)"
        " values (?, ?, ?, ?, ?, ?, ?, 0, '', '')",
        [
            *(row["id"], version, size, body.get("watch_s", canary.WATCH_S)),
            *(body.get("patience_s", canary.PATIENCE_S), command.at, command.by),
        ],
    )
    desktops = "one desktop" if size == 1 else f"{size} desktops"
    text = f"template {row['name']}: version {_number(db, version)} is tried with {desktops} first"
    note(db, command, "template", row["id"], text)
    return Applied({"canary": True, "size": size})


def _become_default(db: Database, command: Command, row: Row, version: str, image: str) -> None:
    _set_stand(db, row["id"], version, Stand.PUBLISHED)
    if row["version"] != version:
        # One that was the default before versions were noted is gone back to all the same.
        record(db, command, row["id"], row["version"], "")
        db.execute(
            "update template_versions set default_at = coalesce(default_at, 0) where template = ? and version = ?",
            [row["id"], row["version"]],
        )
    _mark_default(db, command, row["id"], version)
    db.execute(
        "update templates set version = ?, image = ?, broken_cause = '', changed_at = ? where id = ?",
        [version, image, command.at, row["id"]],
    )


def _mark_default(db: Database, command: Command, template: str, version: str) -> None:
    db.execute(
        "update template_versions set default_at = ? where template = ? and version = ?",
        [command.at, template, version],
    )


def _end_canary(db: Database, row: Row, running: Row | None, *, because: str) -> None:
    if running is not None:
        _stop(db, row["id"], running["version"], "", because)


def _stop(db: Database, template: str, version: str, step: str, cause: str) -> None:
    db.execute("delete from canaries where template = ?", [template])
    _set_stand(db, template, version, Stand.STOPPED, step=step, cause=cause)


def _set_stand(db: Database, template: str, version: str, stand: Stand, *, step: str = "", cause: str = "") -> None:
    db.execute(
        "update template_versions set stand = ?, step = ?, cause = ? where template = ? and version = ?",
        [stand, step, cause, template, version],
    )


def _set_cause(db: Database, command: Command, template: str, cause: str) -> None:
    db.execute("update templates set broken_cause = ?, changed_at = ? where id = ?", [cause, command.at, template])


def _canary(db: Database, command: Command) -> tuple[Row, Row] | Rejected:
    row = template_row(db, command)
    if isinstance(row, Rejected):
        return row
    running = one(db, "select * from canaries where template = ?", [row["id"]])
    if running is None or running["version"] != command.body["version"]:
        return Rejected("conflict", f"no canary of that version is under way in template {row['name']} (any more)")
    return row, running


def _canary_wanted(row: Row, body: Mapping[str, Any]) -> int | str | None:
    """Return how many desktops are tried first; None: no canary; a text: why that cannot be."""
    count, percent = body.get("canary", 0), body.get("canary_percent", 0)
    numbers = {
        "the desktops": (count, 0, 1000),
        "the percentage": (percent, 0, 100),
        "the seconds of watching": (body.get("watch_s", canary.WATCH_S), 1, canary.LONGEST_S),
        "the seconds of patience": (body.get("patience_s", canary.PATIENCE_S), 1, canary.LONGEST_S),
    }
    for unit, (value, least, most) in numbers.items():
        if not is_whole(value, least, most):
            return f"{unit} of a canary {must_be(value, least, most)}"
    if count and percent:
        return "say either how many desktops are tried first or which part of the standbys, not both"
    if not count and not percent:
        return None
    if row["maximum"] < 2:
        return f"with a maximum of {row['maximum']} there is no room for a canary beside the present version"
    return canary.size_of(template_of_row(row), count=count, percent=percent)


def _target(db: Database, row: Row, wanted: object) -> str:
    if wanted is not None:
        return str(wanted) if _is_of(db, row, str(wanted)) else ""
    former = before(template_versions(db, row["id"]), VersionId(row["version"]))
    return former.version if former else ""


def _is_of(db: Database, row: Row, version: str) -> bool:
    noted = one(db, "select at from template_versions where template = ? and version = ?", [row["id"], version])
    return noted is not None or row["version"] == version


def _due(known: Row, at: int) -> Stand | None:
    """Return what a version is by its dates, None if its time has not come."""
    if known["hard_at"] is not None and known["hard_at"] <= at:
        return Stand.ENDED
    if known["soft_at"] is not None and known["soft_at"] <= at:
        return Stand.EXPIRED
    return None


def _expiry_passed(db: Database, row: Row, version: str, at: int) -> str:
    known = one(db, "select * from template_versions where template = ? and version = ?", [row["id"], version])
    if known is None or _due(known, at) is None:
        return ""
    return f"version {known['number']} has expired: give it another date first, or choose another version"


def _dates_problem(soft: object, hard: object) -> str:
    for value in (soft, hard):
        if value is not None and not is_whole(value):
            return f"{value!r} is no moment: give ms since 1970, or null for never"
    if isinstance(soft, int) and isinstance(hard, int) and hard < soft:
        return "a version cannot end before new desktops of it do"
    return ""


def _notes_problem(notes: object) -> str:
    return "" if isinstance(notes, str) and len(notes) <= 2000 else "notes are a text of at most 2000 characters"


def _image_of(db: Database, version: str) -> str:
    """Return the golden image of a version; a template may have changed to another line since."""
    return str(scalar(db, "select image from versions where id = ?", [version], default=""))


def _number(db: Database, version: str) -> str:
    row = one(db, "select number from versions where id = ?", [version])
    return str(row["number"]) if row else "?"


APPLIERS: Mapping[str, Applier] = {
    "template.publish": publish,
    "template.canary_passed": canary_passed,
    "template.canary_stopped": canary_stopped,
    "template.roll_back": roll_back,
    "template.tag": tag,
    "template.untag": untag,
    "template.expiry": set_expiry,
    "template.expire": expire,
}
