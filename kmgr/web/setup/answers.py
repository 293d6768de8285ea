"""The wizard's two answers, as JSON or from the form: read, checked with all problems at once, carried out."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from aiohttp import web

from kmgr.config import KEYS
from kmgr.errors import ConfigError, Refused
from kmgr.grid.discovery import Found
from kmgr.grid.preflight import Finding, PreflightStopped, spelled
from kmgr.users.passwords import LEAST_LENGTH
from kmgr.web.forms import Form
from kmgr.web.services import SETUP, JoinAnswers, NewGridAnswers, SetupServices

Answers: TypeAlias = NewGridAnswers | JoinAnswers


async def describe(request: web.Request) -> web.Response:
    """Answer `GET /api/v1/setup`: this server, and the grids that were found."""
    setup = request.app[SETUP]
    found = await setup.browse()
    told = {"fingerprint": setup.fingerprint, "server": setup.config.name, "version": setup.version}
    return web.json_response({**told, "grids": grids_of(found), "problem": found.problem})


async def answer(request: web.Request) -> web.Response:
    """Answer `POST /api/v1/setup`: create a grid or join one."""
    try:
        warnings = await carry_out(request.app[SETUP], from_json(await _body(request)))
    except PreflightStopped as stopped:
        error = {"code": stopped.code, "message": stopped.message, "findings": spelled(stopped.findings)}
        return web.json_response({"error": error}, status=stopped.http_status)
    return web.json_response({"ok": True, "warnings": spelled(warnings)}, status=201)


async def carry_out(setup: SetupServices, answers: Answers) -> Sequence[Finding]:
    """Create the grid or join it and return what was warned of; a bad name is the person's to mend, not a file's."""
    try:
        if isinstance(answers, JoinAnswers):
            return await setup.join(answers)
        await setup.create(answers)
    except ConfigError as error:
        raise Refused(error.message, code=error.code) from error
    return ()


def grids_of(found: Found) -> list[dict[str, Any]]:
    """Return found grids as plain values."""
    return [
        {
            "grid": grid.grid,
            "name": grid.name,
            "servers": [{"name": one.server_name, "address": one.grid_address} for one in grid.servers],
        }
        for grid in found.grids
    ]


def from_form(form: Form) -> Answers:
    """Read the form of the wizard."""
    server = form.text("server", "this server's name")
    if form.choice("which", "which grid", ("new", "join")) == "join":
        address = form.text("typed") or form.text("address")
        if not address:
            form.add_problem("which grid: choose one of the list, or type the address of one of its servers")
        answers: Answers = JoinAnswers(address=address, phrase=form.text("phrase", "the four words"), server=server)
    else:
        grid, admin = form.text("grid", "the grid's name"), form.text("admin", "the administrator's name")
        password = form.secret("password", "the password")
        if password and len(password) < LEAST_LENGTH:
            form.add_problem(f"a password needs at least {LEAST_LENGTH} characters")
        form.same("password", "again", "the password")
        answers = NewGridAnswers(grid=grid, server=server, admin=admin, password=password)
    if server and (problem := KEYS["name"].check(server)):
        form.add_problem(f"this server's name: {problem}")
    form.check()
    return answers


def from_json(body: Mapping[str, Any]) -> Answers:
    """Read the body of the API's request."""
    problems: list[str] = []

    def text(part: str, name: str) -> str:
        inner = body.get(part)
        value = inner.get(name) if isinstance(inner, Mapping) else None
        if isinstance(value, str) and value.strip():
            return value
        problems.append(f"{part}.{name} must be a text")
        return ""

    if ("grid" in body) == ("join" in body):
        raise Refused('give either "grid" and "admin" for a new grid, or "join" for one that exists')
    answers: Answers
    if "join" in body:
        word = "token" if "token" in (body["join"] or ()) else "phrase"
        answers = JoinAnswers(text("join", "address").strip(), text("join", word).strip(), text("server", "name"))
    else:
        names = text("grid", "name"), text("server", "name"), text("admin", "name")
        answers = NewGridAnswers(*names, password=text("admin", "password"))
        if answers.password and len(answers.password) < LEAST_LENGTH:
            problems.append(f"admin.password needs at least {LEAST_LENGTH} characters")
    if answers.server and (problem := KEYS["name"].check(answers.server)):
        problems.append(f"server.name: {problem}")
    if problems:
        raise Refused("; ".join(problems))
    return answers


async def _body(request: web.Request) -> Mapping[str, Any]:
    try:
        body = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object")
    return body
