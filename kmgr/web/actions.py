"""What people do to the grid, for API and pages alike: propose, wait until it is applied here, return the result.

`by` is the account that asks; whether it may was checked before. `values` and
`changes` have the fields of the API's bodies, checked there or by the page's form;
the log's own refusals are raised as errors with their reasons.
"""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

import kmgr.grid.queries as grid_queries
import kmgr.replica.queries as replica_queries
from kmgr.balancer.maintenance import carry_out
from kmgr.balancer.redundancy import Drain, Maintenance, Remove
from kmgr.entropy import new_id
from kmgr.errors import Conflict, NotAllowed, NotFound, Refused
from kmgr.grid.outcomes import applied
from kmgr.ids import AccountName, DesktopId, ImageId, ServerId, VersionId
from kmgr.provision.attendance import MESSAGE
from kmgr.provision.model import CopyState, Desktop, DesktopState
from kmgr.provision.queries import copies
from kmgr.provision.queries import desktop as find_desktop
from kmgr.replica.model import Image, Version, VersionState
from kmgr.settings import check as check_setting
from kmgr.settings import problems as setting_problems
from kmgr.templates.addresses import check_url
from kmgr.templates.model import Kind, Refresh
from kmgr.users.access import may_look
from kmgr.users.broker import Answer
from kmgr.users.model import DirectoryConfig, Session
from kmgr.users.passwords import hash_password
from kmgr.users.sessions import normalised
from kmgr.web import auth, present
from kmgr.web.flood import FLOOD
from kmgr.web.records import Item
from kmgr.web.services import SERVICES, Services
from kmgr.web.tickets import TICKETS, VALID_S, Ticket

Values = Mapping[str, Any]

# ── templates ──


async def create_template(services: Services, by: str, values: Values) -> Item:
    """Make a template; `image` is an id or a name, `version` an id or a number (missing: the newest)."""
    image, version = _image_version(services, str(values["image"]), values.get("version"))
    body = {
        "template": new_id("tpl"),
        "name": values["name"],
        "notes": values.get("notes", ""),
        "image": image.id,
        "version": version,
        "refresh": values.get("refresh", Refresh.ON_LOGOUT),
        "kind": values.get("kind", Kind.POOLED),
        "policy": values.get("policy", {}),
        **{name: values[name] for name in ("vcpus", "memory_mib", "standby", "maximum")},
    }
    await _change(services, by, "template.create", body)
    return present.template_of(services, body["template"])


async def update_template(services: Services, by: str, template: str, changes: Values) -> Item:
    """Change some of notes, vcpus, memory_mib, standby, maximum, refresh, enabled."""
    await _change(services, by, "template.update", {"template": template, **changes})
    return present.template_of(services, template)


async def delete_template(services: Services, by: str, template: str) -> None:
    """Delete a template and retire its desktops; refused while one of them is in use."""
    await _change(services, by, "template.delete", {"template": template})


async def mend(services: Services, by: str, template: str) -> Item:
    """Let a template be refilled again after it was stopped for failures."""
    await _change(services, by, "template.mend", {"template": template})
    return present.template_of(services, template)


async def assign(services: Services, by: str, template: str, kind: str, subject: str) -> list[Item]:
    """Let a user, a group or everyone use a template; returns who may use it now."""
    await _change(services, by, "assignment.add", {"template": template, "kind": kind, "subject": subject})
    return present.assignments(services, template)


async def unassign(services: Services, by: str, template: str, kind: str, subject: str) -> list[Item]:
    """Take a template from a user, a group or everyone; returns who may use it now."""
    plain = subject.strip().casefold()
    await _change(services, by, "assignment.remove", {"template": template, "kind": kind, "subject": plain})
    return present.assignments(services, template)


# ── images ──


async def import_upload(
    services: Services, by: str, name: str, chunks: AsyncIterator[bytes], *, size_bytes: int, notes: str = ""
) -> Item:
    """Import a disk that somebody sends; returns the image with its new version."""
    result = await services.importer.import_stream(chunks, size_bytes=size_bytes, image_name=name, notes=notes, by=by)
    return present.image_of(services, result.image)


async def import_file(services: Services, by: str, name: str, path: str, *, notes: str = "") -> Item:
    """Import a disk that lies on this server; returns the image with its new version."""
    result = await services.importer.import_file(Path(path), image_name=name, notes=notes, by=by)
    return present.image_of(services, result.image)


async def fetch_image(
    services: Services, by: str, name: str, url: str, *, notes: str = "", sha256: str = "", sums: str = ""
) -> Item:
    """Have this server download a disk; `sums` is the address of a file of checksums. Returns how far it is."""
    check_url(url)
    if sums and not sha256:
        check_url(sums)
        sha256 = await services.fetch_sum(sums, url.partition("?")[0].rpartition("/")[2])
    made = await services.reception.fetch(by=by, image_name=name, url=url, notes=notes, sha256=sha256)
    return present.importing(services, made.id)


async def retry_import(services: Services, import_id: str) -> None:
    """Try an import again that stopped for want of room or of a majority."""
    await services.reception.retry(import_id)


async def cancel_import(services: Services, import_id: str) -> None:
    """Stop an upload or a download and forget what came, or show a failed import no more."""
    if import_id in {one.id for one in services.reception.arrivals.all()}:
        await services.reception.cancel(import_id)
    else:
        services.importer.dismiss(import_id)


async def delete_image(services: Services, by: str, image: str) -> None:
    """Delete a golden image with all its versions; refused while a template uses it."""
    await _change(services, by, "image.delete", {"image": image})


async def delete_version(services: Services, by: str, image: str, number: str) -> None:
    """Delete one version of a golden image; refused while a template or a desktop uses it."""
    _, version = present.version_of(services, image, number)
    await _change(services, by, "version.delete", {"version": version["id"]})


async def set_copies(services: Services, by: str, image: str, copies: int) -> Item:
    """Let so many servers keep each version of a golden image; 0 is all of them."""
    await _change(services, by, "image.copies", {"image": image, "copies": copies})
    return present.image_of(services, image)


# ── accounts, sessions, directories ──


async def log_in(request: web.Request, user: str, password: str) -> tuple[str, Session]:
    """Return a new token and its session; where too many wrong log-ins came from must wait."""
    address = request.remote or ""
    async with request.app[FLOOD].attempt(address):
        return await request.app[SERVICES].sessions.log_in(user, password, address=address)


async def create_account(services: Services, by: str, values: Values) -> Item:
    """Add a built-in account: name, password, display_name, role, groups."""
    name = normalised(str(values["name"]))
    body = {
        "name": name,
        "display_name": values.get("display_name") or values["name"],
        "role": values.get("role", "user"),
        "groups": list(values.get("groups", ())),
        "password_hash": await hash_password(str(values["password"])),
    }
    await _change(services, by, "account.create", body)
    return present.account_of(services, name)


async def update_account(services: Services, by: str, name: str, changes: Values) -> Item:
    """Change some of display_name, role, groups, disabled."""
    await _change(services, by, "account.update", {"name": name, **changes})
    return present.account_of(services, name)


async def set_password(services: Services, by: str, name: str, password: str) -> None:
    """Give an account another password; its sessions end."""
    present.account_of(services, name)
    body = {"name": name, "password_hash": await hash_password(password)}
    await _change(services, by, "account.password", body)


async def delete_account(services: Services, by: str, name: str, *, moves: bool = False) -> None:
    """Remove an account and end its sessions; if it `moves`, its person logs in by a directory from now on."""
    await _change(services, by, "account.delete", {"name": name, "moves": moves})


async def close_sessions(services: Services, by: str, user: str) -> int:
    """End every session of a person; returns how many there were."""
    values = await _change(services, by, "session.close_all", {"name": user})
    return int(values["closed"])


async def set_directory(services: Services, by: str, directory: str, values: Values) -> Item:
    """Add or change a directory of people."""
    body = {"directory": directory, **_directory_values(values)}
    await _change(services, by, "directory.set", body)
    return next(one for one in present.directories(services) if one["id"] == directory)


async def remove_directory(services: Services, by: str, directory: str) -> None:
    """Forget a directory of people."""
    await _change(services, by, "directory.remove", {"directory": directory})


async def try_directory(services: Services, directory: str, values: Values, user: str, password: str) -> str:
    """Log a person in at a directory that is not saved yet; returns who that is, in words."""
    told = _directory_values(values)
    config = DirectoryConfig(id=directory, **{**told, "urls": tuple(told["urls"])})
    return await services.try_directory(config, user, password)


# ── servers, settings ──


async def drain(services: Services, by: str, server: str, *, force: bool = False, notice_minutes: int = 0) -> Item:
    """Give a server no new desktops from now on; refused with the reasons if that is unwise, unless forced."""
    await _maintain(services, by, Drain(ServerId(server)), force=force, notice_minutes=notice_minutes)
    return _server(services, server)


async def undrain(services: Services, by: str, server: str) -> Item:
    """Let a draining server have new desktops again."""
    await _change(services, by, "server.undrain", {"server": server})
    return _server(services, server)


async def remove_server(services: Services, by: str, server: str, *, force: bool = False) -> None:
    """Take a server out of the grid for good; refused with the reasons if that is unwise, unless forced."""
    await _maintain(services, by, Remove(ServerId(server)), force=force)


async def server_off(services: Services, by: str, server: str) -> None:
    """Believe a person that a server which is away is switched off: its personal desktops may go on elsewhere."""
    await _change(services, by, "tenure.end", {"server": server})


async def invite(services: Services, by: str) -> Item:
    """Make a one-time phrase for one new server; an open one ends. The command to copy does not hold it: it asks."""
    made = await services.invite(by)
    with services.grid.view() as db:
        own = grid_queries.server(db, services.own.server)
    address = own.grid_address if own else services.config.grid_address
    return {
        "phrase": made.phrase,
        "token": made.phrase,
        "replaced": made.replaced,
        "expires_at": made.expires_at,
        "address": address,
        "command": f"kmgr join --to {address} --name NAME",
    }


async def set_settings(services: Services, by: str, changes: Values) -> list[Item]:
    """Store grid-wide settings; all or none of them are good."""
    with services.grid.view() as db:
        before = grid_queries.settings(db)
    wanted = {name: check_setting(name, value) for name, value in changes.items()}
    if problems := setting_problems({**before, **wanted}):
        raise Refused("; ".join(problems))
    for name, value in _in_order(before, wanted):
        await _change(services, by, "setting.set", {"name": name, "value": value})
    return present.settings(services)


async def set_setting(services: Services, by: str, name: str, value: int) -> list[Item]:
    """Store one grid-wide setting."""
    return await set_settings(services, by, {name: value})


# ── desktops ──

# A guest is asked twice, for three seconds each.
_TOLD_S = 10.0


async def open_desktop(services: Services, session: Session, template: str) -> Answer:
    """Give a person a desktop of a template (id or name), or say how long it will take."""
    return await services.broker.open(session.person, template)


async def release_desktop(services: Services, session: Session, desktop: str, *, lose: str = "") -> None:
    """Give one's desktop back, or as an administrator have anybody's removed.

    A personal one is deleted only with `lose`, its user's name, by an administrator.
    """
    if lose:
        await services.broker.delete(session.person, DesktopId(desktop), lose=lose)
        return
    await services.broker.release(session.person, DesktopId(desktop))


async def retire_desktop(services: Services, by: str, desktop: str, *, lose: str = "") -> None:
    """Have a desktop removed, whoever uses it; a personal one needs its user's name in `lose`."""
    why = {"desktop": desktop, "why": f"{by} ordered it"}
    await _change(services, by, "desktop.retire", {**why, "lose": lose} if lose else why)


async def drop_superseded(services: Services, by: str, desktop: str, server: str, generation: int) -> None:
    """Delete a personal desktop's former disk on a server."""
    _former(services, desktop, server, generation)
    await _change(services, by, "copy.drop", {"desktop": desktop, "server": server, "generation": generation})


async def put_back(services: Services, by: str, desktop: str, server: str, generation: int) -> None:
    """Stop a personal desktop and let it go on from a former disk; its present one is kept as a former one."""
    now = _former(services, desktop, server, generation)
    body = {"desktop": desktop, "generation": now.generation, "server": server, "disk": generation}
    await _change(services, by, "desktop.put_back", body)


_FORMER = (CopyState.SUPERSEDED, CopyState.LEFT)


def _former(services: Services, desktop: str, server: str, generation: int) -> Desktop:
    """Return a desktop that has this former disk."""
    with services.grid.view() as db:
        kept = copies(db, desktop=DesktopId(desktop), server=ServerId(server))
        found = find_desktop(db, DesktopId(desktop))
    if found is None or not any(c.generation == generation and c.state in _FORMER for c in kept):
        raise NotFound("there is no such former disk (any more)")
    return found


async def retry_desktop(services: Services, by: str, desktop: str) -> None:
    """Make a broken desktop anew."""
    await _change(services, by, "desktop.retry", {"desktop": desktop})


async def message(services: Services, by: str, desktop: str, text: str) -> Item:
    """Show a message to whoever works on a desktop: in the guest if its agent can, and on the page of its screen."""
    with services.grid.view() as db:
        found = find_desktop(db, DesktopId(desktop))
    if found is None:
        raise NotFound("there is no such desktop (any more)")
    if found.state is not DesktopState.IN_USE or found.user is None:
        raise Conflict(f"Nobody works on {found.name} now.")
    body = {"desktop": found.id, "user": found.user, "text": text}
    await _change(services, by, "desktop.message", body)
    told = await services.requests.call(found.server, MESSAGE, body, timeout_s=_TOLD_S)
    return {"user": found.user, "why_not_in_guest": str(told["why_not_in_guest"]), "page": bool(told["page"])}


async def ticket(request: web.Request, session: Session, desktop: str) -> Item:
    """Give a person a one-time link to their desktop's screen, at the address by which they reach this server."""
    services = request.app[SERVICES]
    found = services.broker.see(session.person, DesktopId(desktop))
    if found.state is DesktopState.RETIRED:
        raise NotFound(f"Desktop {found.name} is gone: it was given back, or its server was lost. Open another one.")
    if found.state not in (DesktopState.READY, DesktopState.IN_USE):
        raise Conflict(f"Desktop {found.name} has no screen now: it is {found.state}.", code="no_screen")
    look_at(session, found.name, found.user)
    given = Ticket(session.person, found.id, found.generation, auth.token_of(request))
    word = request.app[TICKETS].issue(given)
    return {"url": f"wss://{request.host}/display/{word}", "expires_s": VALID_S}


def look_at(session: Session, name: str, user: str | None) -> None:
    """Raise `NotAllowed` unless a person may see this desktop's screen, live or as a picture."""
    verdict = may_look(session.person, None if user is None else AccountName(user))
    if not verdict.allowed:
        raise NotAllowed(f"You may not look at {name}: {verdict.reason}.")


async def _change(services: Services, by: str, type: str, body: Values) -> Values:
    return applied(await services.grid.propose(type, body, by=by))


async def _maintain(
    services: Services, by: str, action: Maintenance, *, force: bool, notice_minutes: int = 0
) -> None:
    await carry_out(
        services.grid, services.board, action, by=by, force=force, notice_minutes=notice_minutes, clock=services.clock
    )


def _image_version(services: Services, wanted: str, version: str | int | None) -> tuple[Image, VersionId]:
    with services.grid.view() as db:
        image = replica_queries.image(db, ImageId(wanted)) or replica_queries.image_by_name(db, wanted)
        if image is None:
            raise NotFound(f"there is no golden image {wanted}")
        versions = replica_queries.versions(db, image.id)
    if version is None or version == "":
        newest = [one for one in versions if one.state is VersionState.READY][-1:]
        if not newest:
            raise Refused(f"golden image {image.name} has no version yet: import a disk first")
        return image, newest[0].id
    return image, _chosen(image, versions, version)


def _chosen(image: Image, versions: tuple[Version, ...], wanted: str | int) -> VersionId:
    for one in versions:
        if wanted in (one.id, one.number, str(one.number)):
            return one.id
    raise NotFound(f"golden image {image.name} has no version {wanted}")


def _directory_values(values: Values) -> dict[str, Any]:
    return {
        "urls": list(values["urls"]),
        "base_dn": values["base_dn"],
        "user_filter": values["user_filter"],
        "bind_name": values["bind_name"],
        "ca_pem": values.get("ca_pem", ""),
        "start_tls": bool(values.get("start_tls", False)),
        "admin_group": values.get("admin_group", ""),
    }


def _server(services: Services, server: str) -> Item:
    return next(one for one in present.servers(services) if one["id"] == server)


def _in_order(before: Mapping[str, int], wanted: Mapping[str, int]) -> list[tuple[str, int]]:
    """Order changes so that no inequality is broken on the way: some only hold after the others."""
    ordered: list[tuple[str, int]] = []
    now, left = dict(before), dict(wanted)
    while left:
        fit = [name for name, value in left.items() if not setting_problems({**now, name: value})]
        name = (fit or list(left))[0]
        now[name] = left.pop(name)
        ordered.append((name, now[name]))
    return ordered
