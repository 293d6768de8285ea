"""What an administrator does with templates: make, change, publish, mend, delete, and give them to people."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from kmgr.templates.commands import LIMITS
from kmgr.templates.model import ImageKind, Kind, Refresh
from kmgr.users.model import SubjectKind
from kmgr.web import actions, auth, forms, html_env, present
from kmgr.web.forms import Form
from kmgr.web.services import SERVICES

_PAGE = "/console/templates"
_LABELS = {"vcpus": "virtual CPUs", "memory_mib": "memory in MiB", "standby": "kept ready", "maximum": "at most"}


def add_routes(app: web.Application) -> None:
    """Add what is done with templates."""
    at = "/console/templates/{template}"
    app.add_routes(
        [
            web.get("/console/templates/new", ask_new),
            web.post("/console/templates/new", create),
            web.get(f"{at}/edit", ask_edit),
            web.post(f"{at}/edit", update),
            web.post(f"{at}/mend", mend),
            web.get(f"{at}/delete", ask_delete),
            web.post(f"{at}/delete", delete),
            web.get(f"{at}/people", ask_people),
            web.post(f"{at}/people", assign),
            web.post(f"{at}/people/remove", unassign),
        ]
    )


async def ask_new(request: web.Request) -> web.Response:
    """Show the form for a new template."""
    auth.require_admin(request)
    every = [
        one for one in present.images(request.app[SERVICES]) if one["versions"] and one["kind"] == ImageKind.DISK
    ]
    chosen = request.query.get("image", "")
    return html_env.dialog(request, "console/dialog/template.html", template=None, images=every, chosen=chosen)


async def create(request: web.Request) -> web.Response:
    """Make a template, and give it to everyone if that was ticked."""
    by, services = auth.require_admin(request).person.name, request.app[SERVICES]
    form = await forms.read_form(request)
    values = forms.checked(form, _new_values)
    made = await actions.create_template(services, by, values)
    if form.ticked("everyone"):
        await actions.assign(services, by, made["id"], SubjectKind.EVERYONE, "")
    return html_env.done(request, f"Template {made['name']} was made.", to=_PAGE)


async def ask_edit(request: web.Request) -> web.Response:
    """Show the form of an existing template."""
    template = _template(request)
    return html_env.dialog(request, "console/dialog/template.html", template=template, images=[], chosen="")


async def update(request: web.Request) -> web.Response:
    """Change a template."""
    template = _template(request)
    changes = forms.checked(await forms.read_form(request), _shape)
    changed = {name: value for name, value in changes.items() if value != template[name]}
    if changed:
        await actions.update_template(request.app[SERVICES], _by(request), template["id"], changed)
    return html_env.done(request, f"Template {template['name']} was changed.", to=_PAGE)


async def mend(request: web.Request) -> web.Response:
    """Let a stopped template be refilled again."""
    template = _template(request)
    await actions.mend(request.app[SERVICES], _by(request), template["id"])
    return html_env.done(request, f"{template['name']} is tried again.", to=_PAGE)


async def ask_delete(request: web.Request) -> web.Response:
    """Ask before a template is deleted."""
    return html_env.dialog(request, "console/dialog/delete_template.html", template=_template(request))


async def delete(request: web.Request) -> web.Response:
    """Delete a template."""
    template = _template(request)
    await actions.delete_template(request.app[SERVICES], _by(request), template["id"])
    return html_env.done(request, f"Template {template['name']} was deleted.", to=_PAGE)


async def ask_people(request: web.Request) -> web.Response:
    """Show who may use a template."""
    return _people(request)


async def assign(request: web.Request) -> web.Response:
    """Give a template to everyone, a group or a user."""
    template, form = _template(request), await forms.read_form(request)
    kind = form.choice("kind", "to whom", SubjectKind)
    subject = form.text("subject", "" if kind == SubjectKind.EVERYONE else f"the {kind}")
    form.check()
    await actions.assign(request.app[SERVICES], _by(request), template["id"], kind, subject)
    return _people(request)


async def unassign(request: web.Request) -> web.Response:
    """Take a template from everyone, a group or a user."""
    template, form = _template(request), await forms.read_form(request)
    kind = form.choice("kind", "from whom", SubjectKind)
    form.check()
    await actions.unassign(request.app[SERVICES], _by(request), template["id"], kind, form.text("subject"))
    return _people(request)


def _people(request: web.Request) -> web.Response:
    template, services = _template(request), request.app[SERVICES]
    accounts = present.accounts(services)
    groups = sorted({group for account in accounts for group in account["groups"]})
    return html_env.dialog(request, "console/dialog/people.html", template=template, accounts=accounts, groups=groups)


def _new_values(form: Form) -> Mapping[str, Any]:
    return {
        "name": form.text("name", "the name"),
        "image": form.text("image", "the golden image"),
        "kind": form.choice("kind", "whose the desktops are", Kind) if form.text("kind") else Kind.POOLED,
        **_shape(form),
    }


def _shape(form: Form) -> Mapping[str, Any]:
    numbers = {
        name: form.number(name, _LABELS[name], least=low, most=high) for name, (low, high, _) in LIMITS.items()
    }
    enabled = {"enabled": form.ticked("enabled")} if form.ticked("may_disable") else {}
    refresh = form.choice("refresh", "made anew", Refresh)
    return {**numbers, **enabled, "notes": form.text("notes"), "refresh": refresh}


def _template(request: web.Request) -> dict[str, Any]:
    auth.require_admin(request)
    return present.template_of(request.app[SERVICES], request.match_info["template"])


def _by(request: web.Request) -> str:
    return auth.require_admin(request).person.name
