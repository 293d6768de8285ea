"""Reads of the templates package: rows of the state → records."""

from dataclasses import replace

from sqlite_utils import Database

from kmgr.errors import NotFound
from kmgr.grid.rows import Row, one, rows
from kmgr.ids import TemplateId
from kmgr.templates.model import Kind, Refresh, Template
from kmgr.templates.policy import from_json


def templates(db: Database) -> tuple[Template, ...]:
    """Return all templates by name."""
    return tuple(template_of_row(row) for row in rows(db, "select * from templates order by name"))


def template(db: Database, template: TemplateId) -> Template | None:
    """Return one template, or None."""
    row = one(db, "select * from templates where id = ?", [template])
    return None if row is None else template_of_row(row)


def template_by_name(db: Database, name: str) -> Template | None:
    """Return the template of that name, or None."""
    row = one(db, "select * from templates where name = ?", [name])
    return None if row is None else template_of_row(row)


def template_called(db: Database, wanted: str) -> Template:
    """Return the template of that id or name, as people and their programs call it; raise `NotFound`."""
    found = template(db, TemplateId(wanted)) or template_by_name(db, wanted)
    if found is None:
        raise NotFound(f"there is no template {wanted}")
    return found


def template_of_row(row: Row) -> Template:
    """Make a record from a row."""
    kept = {name: value for name, value in row.items() if name != "next_number"}
    refresh = Refresh(row["refresh"])
    read = {
        "refresh": refresh,
        "enabled": bool(row["enabled"]),
        "kind": Kind(row["kind"]),
        "parent": TemplateId(row["parent"]) if row["parent"] else None,
        "policy": replace(from_json(row["policy"]), refresh=refresh),
    }
    return Template(**{**kept, **read})
