"""The versions of a template: their page, and what an administrator does with them."""

from typing import Any

from aiohttp import web

from kmgr.ids import TemplateId
from kmgr.provision.model import Purpose
from kmgr.templates.canary import LONGEST_S
from kmgr.web import auth, bench_actions, forms, html_env, present, present_versions, present_warm, version_actions
from kmgr.web.forms import Form
from kmgr.web.services import SERVICES
from kmgr.web.version_actions import PASS, STOP

_PAGE = "/console/templates"
_MINUTE_S, _DAY_MS = 60, 86_400_000
_MOST_DAYS = 3650


def add_routes(app: web.Application) -> None:
    """Add the page of a template's versions, and what is done there."""
    at = "/console/templates/{template}"
    app.add_routes(
        [
            web.get(at, show),
            web.get("/console/part/templates/{template}", part),
            web.get(f"{at}/publish", ask_publish),
            web.post(f"{at}/publish", publish),
            web.post(f"{at}/bench/{{version}}/{{purpose}}", make_bench),
            web.get(f"{at}/copy", ask_copy),
            web.post(f"{at}/copy", copy),
            web.get("/console/desktops/{desktop}/version", ask_capture),
            web.post("/console/desktops/{desktop}/version", capture),
            web.get(f"{at}/rollback", ask_roll_back),
            web.post(f"{at}/rollback", roll_back),
            web.post(f"{at}/canary/{{verdict}}", decide),
            web.post(f"{at}/clones/retry", try_clones),
            web.get(f"{at}/versions/{{version}}/edit", ask_edit),
            web.post(f"{at}/versions/{{version}}/edit", edit),
        ]
    )


async def show(request: web.Request) -> web.Response:
    """Show a template's versions."""
    values = {"section": "templates", "title": "", "vitals": False, **_versions(request)}
    return html_env.page(request, "console/template.html", **values)


async def part(request: web.Request) -> web.Response:
    """Return the live part of that page."""
    return html_env.page(request, "console/part/template.html", **_versions(request))


async def ask_publish(request: web.Request) -> web.Response:
    """Show what can be published, and how carefully."""
    values = _versions(request)
    chosen = request.query.get("version", "")
    return html_env.dialog(request, "console/dialog/publish.html", chosen=chosen, **values)


async def publish(request: web.Request) -> web.Response:
    """Make new desktops from another version, at once or after a few were tried."""
    template = _template(request)
    values = forms.checked(await forms.read_form(request), _published)
    after = await version_actions.publish(request.app[SERVICES], _by(request), template["id"], values)
    text = f"New desktops of {after['name']} are made from version {after['version_number']}."
    if after["canary"]:
        canary = after["canary"]
        text = f"Version {canary['number']} is tried first. Until it passes, {text[0].lower()}{text[1:]}"
    if clones := present_versions.version_of(request.app[SERVICES], template["id"], values["version"])["clones"]:
        text = f"{text} {clones[0].upper()}{clones[1:]}."
    return html_env.done(request, text, to=_page(template))


async def ask_roll_back(request: web.Request) -> web.Response:
    """Ask before going back."""
    version = request.query.get("version", "")
    return html_env.dialog(request, "console/dialog/rollback.html", version=version, **_versions(request))


async def roll_back(request: web.Request) -> web.Response:
    """Go back to a former version."""
    template, form = _template(request), await forms.read_form(request)
    version = form.text("version") or None
    after = await version_actions.roll_back(request.app[SERVICES], _by(request), template["id"], version)
    text = f"New desktops of {after['name']} are made from version {after['version_number']} again."
    return html_env.done(request, text, to=_page(template))


async def decide(request: web.Request) -> web.Response:
    """Let a canary pass now, or stop it."""
    template = _template(request)
    verdict = STOP if request.match_info["verdict"] == STOP else PASS
    after = await version_actions.decide(request.app[SERVICES], _by(request), template["id"], verdict)
    text = f"New desktops of {after['name']} are made from version {after['version_number']}."
    return html_env.done(request, text, to=_page(template))


async def try_clones(request: web.Request) -> web.Response:
    """Have servers that stopped trying to restore desktops try again."""
    template = _template(request)
    servers = await version_actions.try_clones(request.app[SERVICES], _by(request), template["id"])
    if not servers:
        return html_env.done(request, "Every server tries it by itself.", to=_page(template))
    text = f"{', '.join(servers)} will try to restore desktops again; the next one that is made tells."
    return html_env.done(request, text, to=_page(template))


async def make_bench(request: web.Request) -> web.Response:
    """Have a desktop made to edit or to test a version with, and go to its page."""
    template, parts = _template(request), request.match_info
    purpose = Purpose.EDIT if parts["purpose"] == Purpose.EDIT else Purpose.TEST
    services, by = request.app[SERVICES], _by(request)
    made = await bench_actions.bench(services, by, template["id"], parts["version"], purpose)
    return html_env.go(request, f"/console/desktops/{made}")


async def ask_capture(request: web.Request) -> web.Response:
    """Ask what the version that is made of a desktop is for."""
    session = auth.require_admin(request)
    services = request.app[SERVICES]
    desktop = present.desktop_of(services, session, request.match_info["desktop"])
    template = present.template_of(services, desktop["template_id"])
    here = [one for one in present_versions.bench(services, template["id"]) if one["id"] == desktop["id"]]
    edited = bool(here) and here[0]["purpose"] == Purpose.EDIT
    return html_env.dialog(request, "console/dialog/capture.html", desktop=desktop, template=template, edited=edited)


async def capture(request: web.Request) -> web.Response:
    """Have a version made of one's desktop."""
    services, by = request.app[SERVICES], _by(request)
    desktop = present.desktop_of(services, auth.require_admin(request), request.match_info["desktop"])
    values = forms.checked(await forms.read_form(request), _captured)
    made = await bench_actions.capture(services, by, desktop["id"], values)
    text = f"{desktop['name']} is shut down and a version of {made['image']} is made of it."
    return html_env.done(request, text, to=f"{_PAGE}/{desktop['template_id']}")


async def ask_copy(request: web.Request) -> web.Response:
    """Ask for the name of a template like this one."""
    return html_env.dialog(request, "console/dialog/copy.html", template=_template(request))


async def copy(request: web.Request) -> web.Response:
    """Make a template like this one, or one derived from it."""
    template, form = _template(request), await forms.read_form(request)
    name = form.text("name", "the name")
    form.check()
    child = form.text("how") == "child"
    made = await bench_actions.derive(request.app[SERVICES], _by(request), template["id"], name, child=child)
    return html_env.done(request, f"Template {made['name']} was made. Nobody may use it yet.", to=_PAGE)


async def ask_edit(request: web.Request) -> web.Response:
    """Show a version's tags and dates."""
    template = _template(request)
    version = _version(request, template)
    tags = [tag for tag in version["tags"] if tag not in ("head", "default")]
    return html_env.dialog(
        request, "console/dialog/version.html", template=template, version=version, tags=tags, day_ms=_DAY_MS
    )


async def edit(request: web.Request) -> web.Response:
    """Change a version's tags and dates."""
    template, services, by = _template(request), request.app[SERVICES], _by(request)
    version = _version(request, template)
    form = await forms.read_form(request)
    wanted = {word.casefold() for word in form.words("tags")}
    days = {name: _days(form, name) for name in ("soft_days", "hard_days")}
    form.check()
    had = {tag for tag in version["tags"] if tag not in ("head", "default")}
    for tag in sorted(wanted - had):
        await version_actions.tag(services, by, template["id"], tag, version["version"])
    for tag in sorted(had - wanted):
        await version_actions.untag(services, by, template["id"], tag)
    now = services.clock.now_ms()
    dates = {f"{name[:4]}_at": now + count * _DAY_MS if count else 0 for name, count in days.items() if count >= 0}
    if dates:
        await version_actions.set_dates(services, by, template["id"], version["version"], dates)
    return html_env.done(request, f"Version {version['number']} was changed.", to=_page(template))


def _published(form: Form) -> dict[str, Any]:
    values: dict[str, Any] = {"version": form.text("version", "the version")}
    if notes := form.text("notes"):
        values["notes"] = notes
    if form.text("how") == "canary":
        if form.text("canary_unit") == "percent":
            values["canary_percent"] = form.number("canary", "the percentage that is tried", least=1, most=100)
        else:
            values["canary"] = form.number("canary", "how many are tried", least=1, most=1000)
        most = LONGEST_S // _MINUTE_S
        values["watch_s"] = _MINUTE_S * form.number("watch_minutes", "how long they are watched", least=1, most=most)
    return values


def _captured(form: Form) -> dict[str, Any]:
    values: dict[str, Any] = {"notes": form.text("notes"), "keep": form.ticked("keep")}
    match form.text("then"):
        case "canary":
            values |= {"publish": True, "canary": 1}
        case "publish":
            values["publish"] = True
        case "template":
            values["template"] = form.text("template", "the new template's name")
    return values


def _days(form: Form, name: str) -> int:
    """Return in how many days something ends; 0: never, -1: as it is."""
    if form.text(name) == "":
        return -1
    return form.number(name, "the number of days", least=0, most=_MOST_DAYS)


def _versions(request: web.Request) -> dict[str, Any]:
    template = _template(request)
    services = request.app[SERVICES]
    known = TemplateId(template["id"])
    slow = present_warm.slow_starts(services, known)
    return {
        "template": template,
        "versions": present_versions.versions(services, known),
        "bench": present_versions.bench(services, known),
        "slow_starts": slow,
        "unnamed": present_warm.unnamed(services, known),
    }


def _version(request: web.Request, template: dict[str, Any]) -> dict[str, Any]:
    return present_versions.version_of(request.app[SERVICES], template["id"], request.match_info["version"])


def _template(request: web.Request) -> dict[str, Any]:
    auth.require_admin(request)
    return present.template_of(request.app[SERVICES], request.match_info["template"])


def _by(request: web.Request) -> str:
    return auth.require_admin(request).person.name


def _page(template: dict[str, Any]) -> str:
    return f"{_PAGE}/{template['id']}"
