"""The shapes of answers, as JSON Schema: one word a shape, put together to records.

Pure. What is spelled here is what `present` returns; a test holds live answers against it.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
STAMP: Schema = {"type": "integer", "description": "ms since 1970"}


def maybe(shape: Schema) -> Schema:
    """Return a shape that may also be null."""
    return {"anyOf": [shape, {"type": "null"}]}


def many(shape: Schema) -> Schema:
    """Return a list of a shape."""
    return {"type": "array", "items": shape}


def by_id(shape: Schema) -> Schema:
    """Return an object of a shape per id."""
    return {"type": "object", "additionalProperties": shape}


def one_of(*words: str) -> Schema:
    """Return a text that is one of some words."""
    return {"type": "string", "enum": list(words)}


def record(fields: Mapping[str, Schema]) -> Schema:
    """Return an object that has exactly these fields."""
    return {
        "type": "object",
        "properties": dict(fields),
        "required": list(fields),
        "additionalProperties": False,
    }


def page(name: str) -> Schema:
    """Return a page of a list of the named component."""
    return record({"items": many(ref(name)), "next": maybe(TEXT)})


def ref(name: str) -> Schema:
    """Return a reference to a named component."""
    return {"$ref": f"#/components/schemas/{name}"}


_ASSIGNMENT = record({"kind": one_of("everyone", "group", "user"), "subject": TEXT})
_PLAIN_DESKTOP: Mapping[str, Schema] = {
    "id": TEXT,
    "name": TEXT,
    "template": TEXT,
    "template_id": TEXT,
    "server": TEXT,
    "server_name": TEXT,
    "state": one_of("placed", "building", "ready", "in_use", "broken", "retired"),
    "user": maybe(TEXT),
    "step": TEXT,
    "cause": TEXT,
    "trouble": maybe(TEXT),
    "meaning": TEXT,
    "advice": TEXT,
    "generation": WHOLE,
    "vcpus": WHOLE,
    "memory_mib": WHOLE,
    "created_at": STAMP,
    "changed_at": STAMP,
    "ready_at": maybe(STAMP),
    "claimed_at": maybe(STAMP),
    "connected_at": maybe(STAMP),
    "disconnected_at": maybe(STAMP),
    "kind": one_of("pooled", "personal"),
    "origin": one_of("cold", "warm"),
    "protection": maybe(ref("Protection")),
    "taken_over": maybe(ref("TakenOver")),
}
_ROLE = one_of("user", "admin")

COMPONENTS: Mapping[str, Schema] = {
    "Error": record({"error": record({"code": TEXT, "message": TEXT})}),
    "Status": record(
        {
            "server": TEXT, "name": TEXT, "grid": TEXT, "version": TEXT, "applied": WHOLE, "term": WHOLE,
            "leader": maybe(TEXT), "majority": FLAG, "island": FLAG, "island_since": maybe(STAMP),
        }
    ),
    "LogIn": record({"token": TEXT, "user": TEXT, "display_name": TEXT, "role": _ROLE, "expires_at": STAMP}),
    "Session": record(
        {
            "user": TEXT, "display_name": TEXT, "role": _ROLE, "source": TEXT, "address": TEXT, "server": TEXT,
            "server_name": TEXT, "created_at": STAMP, "expires_at": STAMP, "current": FLAG,
        }
    ),
    "Server": record(
        {
            "id": TEXT, "name": TEXT, "role": one_of("server", "witness"), "voter": FLAG,
            "state": one_of("up", "draining", "lost", "joining"), "web_address": TEXT,
            "grid_address": TEXT, "version": TEXT, "fingerprint": TEXT, "leader": FLAG, "this": FLAG,
            "joined_at": STAMP, "changed_at": STAMP, "cpus": maybe(WHOLE), "load_percent": maybe(WHOLE),
            "memory_mib": maybe(WHOLE), "memory_free_mib": maybe(WHOLE), "disk_mib": maybe(WHOLE),
            "disk_free_mib": maybe(WHOLE), "accelerator": TEXT, "can_run_desktops": FLAG, "problems": many(TEXT),
            "desktops": WHOLE, "heard_s_ago": maybe(WHOLE),
            "builds": maybe(record({"at_once": WHOLE, "why": TEXT})),
            "drain": maybe(
                record(
                    {
                        "left": WHOLE, "others": WHOLE, "people": WHOLE, "remaining_s": maybe(WHOLE),
                        "until": maybe(STAMP),
                        "moving": many(record({"desktop": TEXT, "name": TEXT, "percent": WHOLE})),
                        "waiting": many(record({"desktop": TEXT, "name": TEXT, "why": TEXT})),
                    }
                )
            ),
        }
    ),
    "Invitation": record(
        {"phrase": TEXT, "token": TEXT, "replaced": FLAG, "expires_at": STAMP, "address": TEXT, "command": TEXT}
    ),
    "Version": record(
        {
            "id": TEXT, "number": WHOLE, "size_bytes": WHOLE, "used_bytes": WHOLE,
            "state": one_of("ready", "retired"), "notes": TEXT, "created_at": STAMP, "created_by": TEXT,
            "servers": many(TEXT), "progress": by_id(WHOLE), "damaged": by_id(WHOLE), "used_by": TEXT, "stays": TEXT,
            "copying": by_id(record({"rate": WHOLE, "remaining_s": maybe(WHOLE), "sources": many(TEXT)})),
            "kept": by_id(
                record(
                    {
                        "taken_bytes": WHOLE, "shared_bytes": WHOLE, "percent": WHOLE, "done_at": STAMP, "bad": WHOLE,
                        "found": WHOLE,
                    }
                )
            ),
        }
    ),
    "Image": record(
        {
            "id": TEXT, "name": TEXT, "notes": TEXT, "created_at": STAMP, "created_by": TEXT,
            "versions": many(ref("Version")), "copies": WHOLE, "kind": one_of("disk", "iso", "drivers", "blank"),
        }
    ),
    "Import": record(
        {
            "id": TEXT, "image_name": TEXT, "by": TEXT, "started_at": STAMP, "step": TEXT, "percent": WHOLE,
            "error": TEXT, "source": TEXT, "done_bytes": WHOLE, "total_bytes": WHOLE, "rate_bytes_s": WHOLE,
            "remaining_s": maybe(WHOLE),
        }
    ),
    "OfferedFile": record({"name": TEXT, "size_bytes": WHOLE, "changed_at": STAMP}),
    "Assignment": _ASSIGNMENT,
    "Template": record(
        {
            "id": TEXT, "name": TEXT, "notes": TEXT, "image": TEXT, "image_name": TEXT, "version": TEXT,
            "version_number": maybe(WHOLE), "vcpus": WHOLE, "memory_mib": WHOLE, "standby": WHOLE,
            "maximum": WHOLE, "refresh": one_of("on_logout", "schedule", "manual", "never"),
            "kind": one_of("pooled", "personal"), "enabled": FLAG, "broken_cause": TEXT,
            "ready": WHOLE, "building": WHOLE, "in_use": WHOLE, "broken": WHOLE,
            "assignments": many(ref("Assignment")), "created_at": STAMP, "changed_at": STAMP,
            "canary": maybe(ref("Canary")), "before": maybe(WHOLE), "parent": maybe(TEXT),
            "installing": maybe(TEXT),
        }
    ),
    "Canary": record(
        {
            "version": TEXT, "number": WHOLE, "size": WHOLE, "ready": WHOLE, "building": WHOLE, "failed": WHOLE,
            "cause": TEXT, "watch_s": WHOLE, "patience_s": WHOLE, "at": STAMP, "by": TEXT,
        }
    ),
    "BenchDesktop": record(
        {
            "id": TEXT, "name": TEXT, "user": maybe(TEXT), "number": WHOLE, "purpose": one_of("edit", "test", "use"),
            "state": one_of("placed", "building", "ready", "in_use", "broken", "retired"),
            "capture": maybe(
                record(
                    {
                        "state": one_of("wanted", "failed"), "image": TEXT, "notes": TEXT, "step": TEXT,
                        "cause": TEXT, "at": STAMP,
                    }
                )
            ),
        }
    ),
    "TemplateVersion": record(
        {
            "version": TEXT, "number": WHOLE, "notes": TEXT, "author": TEXT, "at": STAMP,
            "stand": one_of("draft", "canary", "published", "stopped", "withdrawn", "expired", "ended"),
            "step": TEXT, "cause": TEXT, "soft_at": maybe(STAMP), "hard_at": maybe(STAMP), "default": FLAG,
            "tags": many(TEXT), "there": FLAG, "ready": WHOLE, "building": WHOLE, "in_use": WHOLE, "broken": WHOLE,
            "canary": maybe(ref("Canary")), "clones": TEXT,
        }
    ),
    "Desktop": record(_PLAIN_DESKTOP),
    "TimeZone": record({"zone": TEXT, "clock": TEXT}),
    "Rules": record(
        {
            "template": TEXT, "name": TEXT, "policy": {"type": "object"}, "leaving": TEXT, "idling": TEXT,
            "pending": many(TEXT), "machine": TEXT, "limits": many(TEXT), "unlike": many(TEXT),
            "time_zone": TEXT, "standby_now": WHOLE,
            "steps": many(record({"at": STAMP, "clock": TEXT, "standby": WHOLE})),
        }
    ),
    "Attention": record(
        {
            "idleness": one_of("no_rule", "active", "warned", "over", "closed"), "left_s": WHOLE, "again_s": WHOLE,
            "then": one_of("disconnect", "log_out"), "text": TEXT, "farewell": TEXT, "message": TEXT,
        }
    ),
    "DesktopHere": record(
        {
            **_PLAIN_DESKTOP, "waiting": TEXT, "superseded": many(ref("Superseded")), "pending": many(TEXT),
            "lost": maybe(ref("Lost")),
        }
    ),
    "Stage": record(
        {
            "at": STAMP, "until": maybe(STAMP), "lasted_ms": WHOLE, "state": _PLAIN_DESKTOP["state"],
            "generation": WHOLE, "server": TEXT, "server_name": TEXT, "user": maybe(TEXT), "step": TEXT,
            "cause": TEXT,
        }
    ),
    "Protection": record(
        {
            "state": one_of("safe", "late", "held", "making", "none", "starting"), "server": maybe(TEXT),
            "server_name": TEXT, "age_s": maybe(WHOLE), "as_of": maybe(STAMP), "text": TEXT, "cause": TEXT,
        }
    ),
    "TakenOver": record(
        {"at": STAMP, "from": TEXT, "to": TEXT, "as_of": STAMP, "lost_s": WHOLE, "text": TEXT}
    ),
    "Lost": record({"at": STAMP, "desktop": TEXT, "server_name": TEXT, "text": TEXT}),
    "Superseded": record({"server": TEXT, "server_name": TEXT, "generation": WHOLE, "since": STAMP}),
    "Wait": record({"estimate_s": maybe(WHOLE), "reason": TEXT}),
    "Ticket": record({"url": TEXT, "expires_s": WHOLE}),
    "Offer": record(
        {
            "template": TEXT, "name": TEXT, "notes": TEXT, "kind": one_of("pooled", "personal"),
            "desktop": maybe(ref("Desktop")), "standby": WHOLE, "reason": TEXT, "leaving": TEXT, "idling": TEXT,
            "gives_back": FLAG, "kept_until": maybe(STAMP), "ending": TEXT, "lost": maybe(ref("Lost")),
        }
    ),
    "Account": record(
        {
            "name": TEXT, "display_name": TEXT, "role": _ROLE, "groups": many(TEXT), "disabled": FLAG,
            "created_at": STAMP, "changed_at": STAMP,
        }
    ),
    "Directory": record(
        {
            "id": TEXT, "urls": many(TEXT), "base_dn": TEXT, "user_filter": TEXT, "bind_name": TEXT,
            "ca_pem": TEXT, "start_tls": FLAG, "admin_group": TEXT,
        }
    ),
    "Quota": record(
        {
            "whom": one_of("user", "member", "group"), "subject": TEXT, "template": maybe(TEXT),
            "template_name": TEXT, "most": WHOLE, "meaning": TEXT,
        }
    ),
    "Setting": record(
        {"name": TEXT, "value": WHOLE, "default": WHOLE, "least": WHOLE, "most": WHOLE, "help": TEXT}
    ),
    "GridAddress": record({"address": TEXT, "server": maybe(TEXT), "server_name": TEXT}),
    "Redundancy": record({"ok": FLAG, "sentences": many(TEXT)}),
    "Event": record(
        {
            "n": WHOLE, "at": STAMP, "by": TEXT, "by_name": TEXT, "kind": TEXT, "subject": TEXT, "text": TEXT,
        }
    ),
}  # fmt: skip
