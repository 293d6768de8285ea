"""The wizard's page: two questions, problems beside the form, then the grid's own pages."""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from kmgr.config import Config
from kmgr.errors import NotAllowed
from kmgr.grid.discovery import Announcement, Found, FoundGrid
from kmgr.grid.preflight import Finding, PreflightStopped, stop, warn
from kmgr.web import auth
from kmgr.web.app import make_setup_app
from kmgr.web.services import JoinAnswers, NewGridAnswers, SetupServices
from tests.lab.pages import parse, problems

NEW = {
    "which": "new", "grid": "Village school", "admin": "root", "password": "long enough", "again": "long enough",
    "server": "attic",
}  # fmt: skip
JOIN = {"which": "join", "address": "192.0.2.1:8440", "typed": "", "phrase": "good", "server": "attic"}
FINDINGS = (
    warn("clock", "the clock is wrong"),
    stop("name", "the name is <taken>"),
    stop("disk", "the disk is full"),
)
TWO = (Announcement("g", "Office", "s1", "one", "192.0.2.1:8440", "0.1"),) * 2


class Wizard:
    """A server without a grid; `done` are the answers that reached it."""

    def __init__(self, folder: Path) -> None:
        self.found = Found(())
        self.done: list[NewGridAnswers | JoinAnswers] = []
        self.warnings: Sequence[Finding] = ()
        setup = SetupServices(
            config=Config(data_dir=folder, name="fresh"),
            version="0.1.0",
            fingerprint="0123456789abcdef" * 4,
            browse=self.browse,
            create=self.create,
            join=self.join,
        )
        self.client = TestClient(TestServer(make_setup_app(setup)), cookie_jar=DummyCookieJar())

    async def browse(self) -> Found:
        return self.found

    async def create(self, answers: NewGridAnswers) -> None:
        self.done.append(answers)

    async def join(self, answers: JoinAnswers) -> Sequence[Finding]:
        if answers.phrase == "stopped":
            raise PreflightStopped(FINDINGS)
        if answers.phrase != "good":
            raise NotAllowed("the phrase is wrong")
        self.done.append(answers)
        return self.warnings

    async def get(self, path: str) -> tuple[int, str]:
        async with self.client.get(path, headers=self._cookie, allow_redirects=False) as answer:
            return answer.status, await answer.text()

    async def submit(self, form: Mapping[str, Any]) -> tuple[int, str, Mapping[str, str]]:
        headers = {**self._cookie, "HX-Request": "true", "HX-Target": "setup-error"}
        data = {**form, auth.CSRF_FIELD: auth.word("form-secret")}
        async with self.client.post("/setup", headers=headers, data=data) as answer:
            return answer.status, await answer.text(), answer.headers

    _cookie: Mapping[str, str] = {"Cookie": f"{auth.FORM_COOKIE}=form-secret"}


@pytest.fixture
async def wizard(tmp_path: Path) -> AsyncIterator[Wizard]:
    wizard = Wizard(tmp_path)
    await wizard.client.start_server()
    yield wizard
    await wizard.client.close()


async def test_the_page_is_sound_and_shows_the_fingerprint(wizard: Wizard) -> None:
    status, text = await wizard.get("/setup")
    assert status == 200
    assert not problems(text, csrf=auth.word("form-secret"))
    assert "0123 4567 89ab cdef" in text
    server = next(one for one in parse(text).all("input") if one.attributes.get("id") == "server")
    assert server.attributes["value"] == "fresh"


async def test_found_grids_can_be_chosen(wizard: Wizard) -> None:
    wizard.found = Found((FoundGrid("g", "<b>Office</b>", TWO),))
    _, text = await wizard.get("/setup/grids")
    chosen = [one.attributes for one in parse(text).all("input") if "checked" in one.attributes]
    assert [one["value"] for one in chosen] == ["192.0.2.1:8440"]
    assert "<b>Office" not in text and "2 servers" in text


async def test_nothing_found_says_why_and_what_to_do(wizard: Wizard) -> None:
    wizard.found = Found((), "Multicast is blocked. Typing an address always works.")
    assert "Multicast is blocked" in (await wizard.get("/setup/grids"))[1]


async def test_a_new_grid_is_made_and_the_page_waits_for_it(wizard: Wizard) -> None:
    status, text, headers = await wizard.submit(NEW)
    assert (status, headers["HX-Retarget"]) == (200, "#wizard")
    assert "setup-waiting" in text
    assert wizard.done == [NewGridAnswers("Village school", "attic", "root", "long enough")]


async def test_a_grid_is_joined_and_a_typed_address_counts_before_the_list(wizard: Wizard) -> None:
    status, text, _ = await wizard.submit({**JOIN, "typed": "192.0.2.9:8440"})
    assert status == 200 and "has joined the grid" in text
    assert wizard.done == [JoinAnswers("192.0.2.9:8440", "good", "attic")]


async def test_all_problems_are_told_beside_the_form(wizard: Wizard) -> None:
    wrong = {"which": "new", "grid": "", "admin": "", "password": "short", "again": "other", "server": "no name!"}
    status, text, headers = await wizard.submit(wrong)
    assert status == 400 and "HX-Retarget" not in headers
    for part in (
        "grid&#39;s name is missing", "administrator&#39;s name is missing", "at least 8 characters",
        "entries differ", "not a host name",
    ):  # fmt: skip
        assert part in text
    assert not wizard.done


async def test_a_refused_invitation_is_told_and_nothing_is_lost(wizard: Wizard) -> None:
    status, text, headers = await wizard.submit({**JOIN, "phrase": "bad"})
    assert status == 403 and "The phrase is wrong" in text and "HX-Retarget" not in headers


async def test_joining_needs_an_address(wizard: Wizard) -> None:
    status, text, _ = await wizard.submit({**JOIN, "address": ""})
    assert status == 400 and "type the address" in text


async def test_everything_that_stops_a_join_is_listed_at_once(wizard: Wizard) -> None:
    status, text, headers = await wizard.submit({**JOIN, "phrase": "stopped"})
    assert status == 400 and "HX-Retarget" not in headers
    items = [" ".join(one.text.split()) for one in parse(text).all("li")]
    assert items == ["The name is <taken>", "The disk is full", "Besides, not in the way: the clock is wrong"]


async def test_what_the_preflight_warned_of_is_shown_after_the_join(wizard: Wizard) -> None:
    wizard.warnings = FINDINGS[:1]
    _, text, _ = await wizard.submit(JOIN)
    assert "has joined the grid" in text and "The clock is wrong" in text


async def test_the_api_lists_findings_too_and_takes_the_phrase_under_either_name(wizard: Wizard) -> None:
    for word in ("phrase", "token"):
        body = {"join": {"address": "192.0.2.1:8440", word: "good"}, "server": {"name": "attic"}}
        async with wizard.client.post("/api/v1/setup", json=body) as answer:
            assert (answer.status, await answer.json()) == (201, {"ok": True, "warnings": []})
    body = {"join": {"address": "192.0.2.1:8440", "phrase": "stopped"}, "server": {"name": "attic"}}
    async with wizard.client.post("/api/v1/setup", json=body) as answer:
        told = (await answer.json())["error"]
    assert (answer.status, told["code"]) == (400, "preflight")
    assert [one["severity"] for one in told["findings"]] == ["stop", "stop", "warn"]
