"""Records as plain values: what API answers and pages are made of, one spelling for both.

Nothing is read here. Stamps are ms since 1970, sizes say their unit. Nothing secret passes: no hashes of
passwords or tokens.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

from kmgr.balancer.drains import Progress
from kmgr.grid.model import Event, Server, Vitals
from kmgr.ids import ServerId, TemplateId
from kmgr.provision.causes import CURES
from kmgr.provision.model import Desktop, DesktopState, Stage
from kmgr.replica.model import Image, Version
from kmgr.templates.jobs import ImportProgress
from kmgr.templates.model import Kind, Refresh, Template
from kmgr.users.broker import Offer
from kmgr.users.model import Account, Assignment, DirectoryConfig, Session
from kmgr.web import policy_words

Item: TypeAlias = dict[str, Any]
TemplateNames: TypeAlias = Mapping[TemplateId, str]
ServerNames: TypeAlias = Mapping[ServerId, str]

BEING_MADE = (DesktopState.PLACED, DesktopState.BUILDING)
_MEASURED = ("cpus", "load_percent", "memory_mib", "memory_free_mib", "disk_mib", "disk_free_mib")


def server(
    record: Server,
    *,
    leader: ServerId | None,
    voters: Collection[ServerId],
    this: ServerId,
    vitals: Vitals | None,
    desktops: int,
    now: float,
) -> Item:
    """Present a server with what it last said of itself; unknown measures are None."""
    measured = {name: getattr(vitals, name) if vitals else None for name in _MEASURED}
    return {
        "id": record.id,
        "name": record.name,
        "role": str(record.role),
        "voter": record.id in voters,
        "state": str(record.state),
        "web_address": record.web_address,
        "grid_address": record.grid_address,
        "version": record.version,
        "fingerprint": record.fingerprint,
        "leader": record.id == leader,
        "this": record.id == this,
        "joined_at": record.joined_at,
        "changed_at": record.changed_at,
        **measured,
        "accelerator": vitals.accelerator if vitals else "",
        "can_run_desktops": bool(vitals and vitals.can_run_desktops),
        "problems": list(vitals.problems) if vitals else [],
        "builds": _builds(vitals),
        "desktops": desktops,
        "heard_s_ago": max(0, round(now - vitals.heard_at)) if vitals else None,
        "drain": None,
    }


def _builds(vitals: Vitals | None) -> Item | None:
    told = vitals.extra.get("builds") if vitals else None
    if not isinstance(told, Mapping) or not isinstance(told.get("limit"), int):
        return None
    return {"at_once": told["limit"], "why": str(told.get("why", ""))}


def drain(told: Progress) -> Item:
    """Present how far the drain of a server is."""
    return {
        "left": told.left,
        "moving": [{"desktop": one.desktop, "name": one.name, "percent": one.percent} for one in told.moving],
        "waiting": [{"desktop": one.desktop, "name": one.name, "why": one.why} for one in told.waiting],
        "others": told.others,
        "people": told.people,
        "remaining_s": told.remaining_s,
    }


def image(record: Image, versions: Iterable[Item]) -> Item:
    """Present a golden image with its versions, oldest first."""
    return {
        "id": record.id,
        "name": record.name,
        "notes": record.notes,
        "created_at": record.created_at,
        "created_by": record.created_by,
        "versions": list(versions),
    }


def version(record: Version, *, holders: Iterable[ServerId], progress: Mapping[ServerId, int]) -> Item:
    """Present a version: who holds it, and how far (percent) the copies of the others are."""
    return {
        "id": record.id,
        "number": record.number,
        "size_bytes": record.size_bytes,
        "used_bytes": record.used_bytes,
        "state": str(record.state),
        "notes": record.notes,
        "created_at": record.created_at,
        "created_by": record.created_by,
        "servers": list(holders),
        "progress": dict(progress),
    }


def template(
    record: Template,
    *,
    image_name: str,
    version_number: int | None,
    states: Mapping[DesktopState, int],
    given: Iterable[Assignment],
) -> Item:
    """Present a template with the count of its desktops and who may use it."""
    return {
        "id": record.id,
        "name": record.name,
        "notes": record.notes,
        "image": record.image,
        "image_name": image_name,
        "version": record.version,
        "version_number": version_number,
        "vcpus": record.vcpus,
        "memory_mib": record.memory_mib,
        "standby": record.standby,
        "maximum": record.maximum,
        "refresh": str(record.refresh),
        "kind": str(record.kind),
        "enabled": record.enabled,
        "broken_cause": record.broken_cause,
        "ready": states.get(DesktopState.READY, 0),
        "building": sum(states.get(state, 0) for state in BEING_MADE),
        "in_use": states.get(DesktopState.IN_USE, 0),
        "broken": states.get(DesktopState.BROKEN, 0),
        "assignments": [assignment(one) for one in given],
        "created_at": record.created_at,
        "changed_at": record.changed_at,
    }


def assignment(record: Assignment) -> Item:
    """Present who may use a template."""
    return {"kind": str(record.kind), "subject": record.subject}


def desktop(
    record: Desktop,
    *,
    templates: TemplateNames,
    servers: ServerNames,
    protection: Item | None = None,
    taken_over: Item | None = None,
) -> Item:
    """Present a desktop, the same on every server; `templates` and `servers` map ids to names."""
    return {
        "id": record.id,
        "name": record.name,
        "template": templates.get(record.template, record.template),
        "template_id": record.template,
        "server": record.server,
        "server_name": servers.get(record.server, record.server),
        "state": str(record.state),
        "user": record.user,
        "step": record.step,
        "cause": record.cause,
        "trouble": None if record.trouble is None else str(record.trouble),
        "meaning": "" if record.trouble is None else CURES[record.trouble].what,
        "advice": "" if record.trouble is None else CURES[record.trouble].advice,
        "generation": record.generation,
        "vcpus": record.vcpus,
        "memory_mib": record.memory_mib,
        "created_at": record.created_at,
        "changed_at": record.changed_at,
        "ready_at": record.ready_at,
        "claimed_at": record.claimed_at,
        "connected_at": record.connected_at,
        "disconnected_at": record.disconnected_at,
        "kind": str(record.kind),
        "origin": str(record.origin),
        "protection": protection,
        "taken_over": taken_over,
    }


def stage(record: Stage, *, until: int | None, now: int, servers: ServerNames) -> Item:
    """Present a part of a desktop's life; `until` is None for the one that lasts."""
    return {
        "at": record.at,
        "until": until,
        "lasted_ms": max(0, (now if until is None else until) - record.at),
        "state": str(record.state),
        "generation": record.generation,
        "server": record.server,
        "server_name": servers.get(record.server, record.server),
        "user": record.user,
        "step": record.step,
        "cause": record.cause,
    }


def session(record: Session, *, servers: ServerNames, current: str = "") -> Item:
    """Present a session; `current` is the hash of the asking one."""
    return {
        "user": record.person.name,
        "display_name": record.person.display_name,
        "role": str(record.person.role),
        "source": record.person.source,
        "address": record.address,
        "server": record.server,
        "server_name": servers.get(record.server, record.server),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "current": record.hash == current,
    }


def event(record: Event, *, servers: ServerNames) -> Item:
    """Present a line of the history; `by_name` says who did it, also if a server did it by itself."""
    name = servers.get(ServerId(record.by))
    return {
        "n": record.n,
        "at": record.at,
        "by": record.by,
        "by_name": record.by if name is None else f"server {name}",
        "kind": record.kind,
        "subject": record.subject,
        "text": record.text,
    }


def account(record: Account) -> Item:
    """Present a built-in account."""
    return {
        "name": record.name,
        "display_name": record.display_name,
        "role": str(record.role),
        "groups": list(record.groups),
        "disabled": record.disabled,
        "created_at": record.created_at,
        "changed_at": record.changed_at,
    }


def directory(record: DirectoryConfig) -> Item:
    """Present how a directory is asked."""
    return {
        "id": record.id,
        "urls": list(record.urls),
        "base_dn": record.base_dn,
        "user_filter": record.user_filter,
        "bind_name": record.bind_name,
        "ca_pem": record.ca_pem,
        "start_tls": record.start_tls,
        "admin_group": record.admin_group,
    }


def importing(record: ImportProgress) -> Item:
    """Present an import on this server; `error` is empty unless it failed."""
    return {
        "id": record.id,
        "image_name": record.image_name,
        "by": record.by,
        "started_at": record.started_at,
        "step": record.step,
        "percent": record.percent,
        "error": record.error,
        "source": record.source,
        "done_bytes": record.done_bytes,
        "total_bytes": record.total_bytes,
        "rate_bytes_s": record.rate_bytes_s,
        "remaining_s": record.remaining_s,
    }


def offer(record: Offer, *, desktop: Item | None) -> Item:
    """Present a template that somebody may use, with what becomes of its desktop when they leave it."""
    policy, own = record.template.policy, record.desktop
    left_at = own.disconnected_at if own is not None and not own.personal else None
    return {
        "template": record.template.id,
        "name": record.template.name,
        "notes": record.template.notes,
        "kind": str(record.template.kind),
        "desktop": desktop,
        "standby": record.standby,
        "reason": record.reason,
        "gives_back": record.template.kind is Kind.POOLED and record.template.refresh is not Refresh.NEVER,
        "leaving": policy_words.leaving(policy, record.template.kind),
        "idling": policy_words.idling(policy, record.template.kind),
        "kept_until": left_at + 1000 * policy.keep_s if left_at is not None and policy.keep_s is not None else None,
    }
