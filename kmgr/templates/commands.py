"""Replicated changes of the templates package: one applier per command."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlite_utils import Database

from kmgr.errors import Refused
from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.rows import one, rows
from kmgr.replica.commands import forget_version
from kmgr.templates.install_queries import installs
from kmgr.templates.model import Kind, Refresh, name_problem
from kmgr.templates.policy import USUAL, Policy, as_values, from_json, policy_of, to_json
from kmgr.templates.version_commands import expired, first_version, template_row, version_problem
from kmgr.whole import is_whole, must_be

# Field → (least, most, unit): what a person may ask for. 64 MiB is the least a Linux guest boots in.
LIMITS: Mapping[str, tuple[int, int, str]] = {
    "vcpus": (1, 64, "processors"),
    "memory_mib": (64, 1_048_576, "MiB of memory"),
    "standby": (0, 1000, "standby desktops"),
    "maximum": (0, 1000, "desktops"),
}
_CHANGEABLE = (*LIMITS, "notes", "refresh", "enabled")


def create_template(db: Database, command: Command) -> Outcome:
    """Add a template.

    body: template, name, notes, image, version, vcpus, memory_mib, standby, maximum, refresh, kind? (pooled),
    policy? (what differs from the usual one), parent? (the template that it is derived from)
    """
    body = command.body
    parent = str(body.get("parent", ""))
    if parent and one(db, "select id from templates where id = ?", [parent]) is None:
        return Rejected("not_found", f"there is no template {parent} to derive one from")
    if problem := name_problem(body["name"]):
        return Rejected("refused", problem)
    if one(db, "select id from templates where name = ?", [body["name"]]):
        return Rejected("conflict", f"there is already a template named {body['name']}")
    if one(db, "select id from templates where id = ?", [body["template"]]):
        return Rejected("conflict", f"the id {body['template']} is taken by another template")
    problem = _shape_problem(body) or version_problem(db, str(body["image"]), str(body["version"]))
    if problem:
        return Rejected("refused", problem)
    policy = _changed_policy(USUAL, body)
    if isinstance(policy, Rejected):
        return policy
    db.execute(
        "insert into templates (id, name, notes, image, version, vcpus, memory_mib, standby, maximum, refresh,"
        " enabled, broken_cause, next_number, created_at, changed_at, kind, policy, parent)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, '', 1, ?, ?, ?, ?, ?)",
        [
            *(body[name] for name in ("template", "name", "notes", "image", "version", "vcpus", "memory_mib")),
            *(body["standby"], body["maximum"], policy.refresh, command.at, command.at),
            *(body.get("kind", Kind.POOLED), to_json(policy), parent),
        ],
    )
    first_version(db, command, str(body["template"]), str(body["version"]))
    note(db, command, "template", body["template"], f"template {body['name']} created")
    return Applied({"template": body["template"]})


def update_template(db: Database, command: Command) -> Outcome:
    """Change some fields.

    body: template, any of notes, vcpus, memory_mib, standby, maximum, refresh, enabled, policy (what changes of it)
    """
    row = template_row(db, command)
    if isinstance(row, Rejected):
        return row
    changes = {name: value for name, value in command.body.items() if name != "template"}
    unknown = sorted(set(changes) - {*_CHANGEABLE, "policy"})
    if "kind" in unknown:
        return Rejected(
            "refused",
            "whether desktops are pooled or personal is chosen once: make another template for the other kind",
        )
    if unknown:
        return Rejected("refused", f"a template has no {', '.join(unknown)} that could be changed")
    merged = {**row, **changes}
    problem = _shape_problem(merged)
    if problem:
        return Rejected("refused", problem)
    former = replace(from_json(row["policy"]), refresh=Refresh(row["refresh"]))
    policy = _changed_policy(former, changes)
    if isinstance(policy, Rejected):
        return policy
    if merged["enabled"] and not row["enabled"] and row["id"] in installs(db):
        return Rejected("refused", f"{row['name']} is still being installed: publish a version of its desktop first")
    merged["refresh"] = policy.refresh
    told = _policy_changes(former, policy)
    if policy != former:
        db.execute("update templates set policy = ? where id = ?", [to_json(policy), row["id"]])
    for name in _CHANGEABLE:
        value = int(merged[name]) if name == "enabled" else merged[name]
        if value != row[name]:
            db.execute(f"update templates set {name} = ? where id = ?", [value, row["id"]])  # noqa: S608 - own names
            told.append(f"{name.replace('_', ' ')} {row[name]} → {value}")
    if told:
        db.execute("update templates set changed_at = ? where id = ?", [command.at, row["id"]])
        note(db, command, "template", row["id"], f"template {row['name']} changed: {'; '.join(told)}")
    return Applied()


def mark_broken(db: Database, command: Command) -> Outcome:
    """Stop refilling a template because its desktops keep failing. body: template, version, cause."""
    row = template_row(db, command)
    if isinstance(row, Rejected):
        return row
    if row["version"] != command.body["version"]:
        return Rejected("conflict", f"template {row['name']} has another version by now")
    if row["broken_cause"]:
        return Applied()
    cause = str(command.body["cause"])
    db.execute("update templates set broken_cause = ?, changed_at = ? where id = ?", [cause, command.at, row["id"]])
    note(db, command, "alarm", row["id"], f"template {row['name']} is not refilled any more: {cause}")
    return Applied()


def mend(db: Database, command: Command) -> Outcome:
    """Let a broken template be refilled again. body: template."""
    row = template_row(db, command)
    if isinstance(row, Rejected):
        return row
    if expired(db, row["id"], row["version"]):
        return Rejected("refused", f"{row['broken_cause']}, or give it another date")
    if row["broken_cause"]:
        db.execute("update templates set broken_cause = '', changed_at = ? where id = ?", [command.at, row["id"]])
        note(db, command, "template", row["id"], f"template {row['name']} is refilled again")
    return Applied()


def delete_image(db: Database, command: Command) -> Outcome:
    """Remove a golden image with all its versions. body: image. Refused while a template uses it."""
    image = one(db, "select id, name from images where id = ?", [command.body["image"]])
    if image is None:
        return Rejected("not_found", f"there is no golden image {command.body['image']}")
    users = rows(
        db,
        "select t.name from templates t where t.image = ? or exists (select 1 from canaries c join versions v"
        " on v.id = c.version where c.template = t.id and v.image = ?) order by t.name",
        [image["id"], image["id"]],
    )
    if users:
        names = ", ".join(row["name"] for row in users)
        return Rejected("conflict", f"golden image {image['name']} is used by {names}: delete these templates first")
    for version in rows(db, "select id from versions where image = ? order by number", [image["id"]]):
        forget_version(db, version["id"])
    db.execute("delete from image_copies where image = ?", [image["id"]])
    db.execute("delete from images where id = ?", [image["id"]])
    note(db, command, "image", image["id"], f"golden image {image['name']} deleted")
    return Applied()


def _shape_problem(body: Mapping[str, Any]) -> str:
    for name, (least, most, unit) in LIMITS.items():
        value = body[name]
        if not is_whole(value, least, most):
            return f"{unit} of a template {must_be(value, least, most)}"
    if body["standby"] > body["maximum"]:
        return f"{body['standby']} standby desktops are more than the maximum of {body['maximum']}"
    if body["refresh"] not in list(Refresh):
        return f"{body['refresh']!r} is no refresh policy: choose {' or '.join(Refresh)}"
    if body.get("kind", Kind.POOLED) not in list(Kind):
        return f"{body['kind']!r} is no kind of desktop: choose {' or '.join(Kind)}"
    if not isinstance(body["notes"], str) or body.get("enabled", True) not in (True, False):
        return "notes are a text, and a template is enabled or not: true or false"
    return ""


def _changed_policy(former: Policy, changes: Mapping[str, Any]) -> Policy | Rejected:
    """Return a policy with what a command changes of it; `refresh` may stand beside it, as it always did."""
    wanted = changes.get("policy", {})
    if not isinstance(wanted, Mapping):
        return Rejected("refused", f"a policy is an object of its fields, not {wanted!r}")
    beside = {"refresh": changes["refresh"]} if "refresh" in changes else {}
    try:
        return policy_of({**beside, **wanted}, base=former)
    except Refused as error:
        return Rejected("refused", error.message)


def _policy_changes(former: Policy, policy: Policy) -> list[str]:
    before, after = as_values(former), as_values(policy)
    changed = [name for name in before if before[name] != after[name] and name != "refresh"]
    # What the first boot is told may be long, and is nobody's business in the history.
    return [
        f"{name.replace('_', ' ')} changed"
        if name == "seed_data"
        else f"{name.replace('_', ' ')} {before[name]} → {after[name]}"
        for name in changed
    ]


APPLIERS: Mapping[str, Applier] = {
    "template.create": create_template,
    "template.update": update_template,
    "template.broken": mark_broken,
    "template.mend": mend,
    "image.delete": delete_image,
}
