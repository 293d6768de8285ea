"""Replicated changes about desktops that administrators edit or test, and about versions that are made of disks.

An administrator is given a desktop of any version of a template's golden image,
outside of all pools (`desktop.bench`), works on it, and has a version made of its
disk (`desktop.capture`): its server shuts it down, copies the disk and says so.

Rule 1: only of one's own desktop a version is made. Rule 2: what is captured stays
as it is until its server has said how that ended. Rule 3: the version's id is chosen
beforehand: whoever begins anew after a kill makes the same one.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Outcome, Rejected
from kmgr.grid.fsm import Applier
from kmgr.grid.history import note
from kmgr.grid.rows import Row, one, scalar
from kmgr.provision.desktop_rows import add_desktop, desktop_row, fenced, takes_desktops
from kmgr.provision.lifecycle import Event, after
from kmgr.provision.model import DesktopState as S
from kmgr.provision.model import Purpose
from kmgr.provision.outfit import machine_in
from kmgr.replica.model import name_problem
from kmgr.templates.commands import create_template
from kmgr.templates.model import Kind
from kmgr.templates.model import name_problem as template_name_problem
from kmgr.templates.policy import as_values, from_json
from kmgr.templates.version_commands import publish, version_problem

# Desktops of one template that may be edited or tested at the same time.
MOST_ON_BENCH = 8
_HOW = ("canary", "canary_percent", "watch_s", "patience_s")


def bench(db: Database, command: Command) -> Outcome:
    """Give an administrator a desktop to edit or to test a version with.

    body: desktop, template, version, server, purpose (edit or test), user
    """
    body = command.body
    if one(db, "select id from desktops where id = ?", [body["desktop"]]):
        return Applied({"desktop": body["desktop"]})
    template = one(db, "select * from templates where id = ?", [body["template"]])
    if template is None:
        return Rejected("not_found", f"there is no template {body['template']}")
    problem = version_problem(db, template["image"], str(body["version"]))
    if body["purpose"] not in (Purpose.EDIT, Purpose.TEST):
        problem = problem or f"a desktop is made to {Purpose.EDIT} or to {Purpose.TEST}, not to {body['purpose']!r}"
    if not isinstance(body["user"], str) or not body["user"]:
        problem = problem or "such a desktop is somebody's: say whose"
    server = one(db, "select * from servers where id = ?", [body["server"]])
    if server is None or not takes_desktops(server):
        problem = problem or f"server {body['server']} takes no new desktops now"
    here = "select count(*) from desktops where template = ? and purpose <> ? and state <> ?"
    if scalar(db, here, [template["id"], Purpose.USE, S.RETIRED]) >= MOST_ON_BENCH:
        problem = problem or f"{MOST_ON_BENCH} desktops of {template['name']} are edited or tested: remove one first"
    if problem:
        return Rejected("refused", problem)
    name = add_desktop(db, command, template, kind=Kind.POOLED, user=body["user"], purpose=body["purpose"])
    note(db, command, "desktop", str(body["desktop"]), f"{body['user']} is given desktop {name} to {body['purpose']}")
    return Applied({"desktop": body["desktop"], "name": name})


def capture(db: Database, command: Command) -> Outcome:
    """Have a version made of a desktop's disk.

    body: desktop, version (its id), image (the name of the golden image it is of), notes, keep (the desktop goes on),
    publish? (of the desktop's template: canary, watch_s and so on), template? (the name of a new template of it)
    """
    body = command.body
    row = desktop_row(db, command)
    if isinstance(row, Rejected):
        return row
    if row["user"] != command.by:
        return Rejected("not_allowed", f"desktop {row['name']} is not {command.by}'s")
    problem = _capture_problem(db, row, body)
    if problem:
        return Rejected("refused", problem)
    running = one(db, "select * from captures where desktop = ?", [row["id"]])
    if running is not None and running["state"] == "wanted":
        return Rejected("conflict", f"a version of {row['name']} is being made")
    how = {"publish": body.get("publish"), "template": body.get("template"), "keep": bool(body.get("keep"))}
    db.execute(
        "insert or replace into captures (desktop, generation, server, version, image, notes, how, by, at, state,"
        " step, cause) values (?, ?, ?, ?, ?, ?, ?, ?, ?, 'wanted', '', '')",
        [
            *(row["id"], row["generation"], row["server"], body["version"], body["image"], body["notes"]),
            *(json.dumps(how, sort_keys=True), command.by, command.at),
        ],
    )
    note(db, command, "desktop", row["id"], f"a version of {body['image']!r} is made of desktop {row['name']}")
    return Applied({"version": body["version"]})


def captured(db: Database, command: Command) -> Outcome:
    """The version is there; the desktop goes, or goes on. body: desktop, generation, server, version.

    Of one that starts by UEFI besides: variables (its firmware's, packed), which the version's desktops begin with.
    """
    found = _wanted(db, command)
    if isinstance(found, Rejected):
        return found
    row, capture = found
    db.execute("delete from captures where desktop = ?", [row["id"]])
    if variables := str(command.body.get("variables", "")):
        _keep_variables(db, row, capture["version"], variables)
    how = json.loads(capture["how"])
    if not how["keep"]:
        state = after(S(row["state"]), Event.RETIRED)
        db.execute("update desktops set state = ?, changed_at = ? where id = ?", [state, command.at, row["id"]])
    number = scalar(db, "select number from versions where id = ?", [capture["version"]], default="?")
    text = f"version {number} of {capture['image']!r} was made of desktop {row['name']}"
    note(db, command, "desktop", row["id"], text)
    _use(db, replace(command, by=capture["by"]), row, capture, how)
    return Applied()


def capture_failed(db: Database, command: Command) -> Outcome:
    """It could not be made; the desktop goes on. body: desktop, generation, server, version, step, cause."""
    found = _wanted(db, command)
    if isinstance(found, Rejected):
        return found
    row, _ = found
    step, cause = str(command.body["step"]), str(command.body["cause"])
    db.execute(
        "update captures set state = 'failed', step = ?, cause = ? where desktop = ?", [step, cause, row["id"]]
    )
    note(db, command, "alarm", row["id"], f"no version was made of desktop {row['name']}: {step}: {cause}")
    return Applied()


def _keep_variables(db: Database, row: Row, version: str, variables: str) -> None:
    policy = scalar(db, "select policy from templates where id = ?", [row["template"]], default="")
    firmware = machine_in(row["outfit"], from_json(policy)).firmware
    if one(db, "select id from versions where id = ?", [version]) is not None:
        db.execute(
            "insert or replace into version_variables (version, firmware, variables) values (?, ?, ?)",
            [version, firmware, variables],
        )


def _use(db: Database, command: Command, row: Row, capture: Row, how: Mapping[str, Any]) -> None:
    """Publish the version that was made, or make a template of it, if that was asked for; a refusal is noted."""
    made = one(db, "select image from versions where id = ?", [capture["version"]])
    template = one(db, "select * from templates where id = ?", [row["template"]])
    if made is None or template is None:
        return
    body = {"version": capture["version"], "image": made["image"], "notes": capture["notes"]}
    outcome: Outcome = Applied()
    if how["publish"] is not None:
        asked = {name: value for name, value in how["publish"].items() if name in _HOW}
        outcome = publish(db, replace(command, body={**asked, **body, "template": template["id"]}))
    elif how["template"] is not None:
        shape = {name: template[name] for name in ("vcpus", "memory_mib", "standby", "maximum", "refresh", "kind")}
        # The id is the version's: the same on every server, and nobody else's.
        new = {"template": f"tpl-{capture['version']}", "name": how["template"], "notes": capture["notes"]}
        policy = as_values(from_json(template["policy"]))
        outcome = create_template(db, replace(command, body={**shape, **body, **new, "policy": policy}))
    if isinstance(outcome, Rejected):
        note(db, command, "alarm", template["id"], f"the version made of {row['name']} waits: {outcome.detail}")


def _wanted(db: Database, command: Command) -> tuple[Row, Row] | Rejected:
    row = fenced(db, command)
    if isinstance(row, Rejected):
        return row
    capture = one(db, "select * from captures where desktop = ? and state = 'wanted'", [row["id"]])
    if capture is None or capture["version"] != command.body["version"]:
        return Rejected("conflict", f"no version of desktop {row['name']} is to be made (any more)")
    return row, capture


def _capture_problem(db: Database, row: Row, body: Mapping[str, Any]) -> str:
    if row["state"] != S.IN_USE or row["moving_to"] is not None:
        return f"a version is made of a desktop that is in use and stays where it is; {row['name']} is {row['state']}"
    if row["purpose"] == Purpose.TEST:
        return f"{row['name']} is there to test a version: ask for one to edit"
    if (
        not isinstance(body["image"], str)
        or not isinstance(body["notes"], str)
        or not isinstance(body["version"], str)
    ):
        return "image, notes and version are texts"
    if problem := name_problem(body["image"]):
        return problem
    publish, template = body.get("publish"), body.get("template")
    if publish is not None and not isinstance(publish, Mapping):
        return "publish is an object: canary, canary_percent, watch_s, patience_s"
    if template is not None and (problem := template_name_problem(template)):
        return problem
    if template is not None and one(db, "select id from templates where name = ?", [template]):
        return f"there is already a template named {template}"
    if publish is not None and template is not None:
        return "a version is published to its desktop's template or to a new one, not to both"
    return ""


APPLIERS: Mapping[str, Applier] = {
    "desktop.bench": bench,
    "desktop.capture": capture,
    "desktop.captured": captured,
    "desktop.capture_failed": capture_failed,
}
