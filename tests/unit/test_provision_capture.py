"""Desktops to edit and to test, and versions made of their disks: from the wish to the published version."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kmgr.balancer.plan import plan
from kmgr.balancer.queries import look
from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.queries import events
from kmgr.ids import DesktopId, TemplateId
from kmgr.provision.capture_queries import captures
from kmgr.provision.capturing import SHUTDOWN_S, Capturing
from kmgr.provision.desktop_rows import living
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.model import Purpose
from kmgr.replica.images import Images
from kmgr.replica.queries import versions
from kmgr.templates.importer import Importer
from kmgr.templates.queries import template, template_by_name
from kmgr.templates.version_queries import canaries, template_versions
from tests.lab.outcomes import rejected
from tests.lab.provision import A, B, Desk, done

EDIT = DesktopId("dsk-edit")
TPL = TemplateId("tpl")


class Bench(Desk):
    """That server with a maker of versions, and a second version that is not published."""

    async def open(self) -> None:
        await self.found(standby=0)
        await self.version("ver-2")
        self.images = Images(self.folder)
        self.importer = Importer(self.grid, self.images, self.clock)
        self.capturing = Capturing(
            self.grid, self.hypervisor, self.importer, clock=self.clock, data_dir=self.folder, backing=self.backing
        )
        self.agent._elsewhere = self.capturing.holds

    async def bench(self, desktop: str = EDIT, **changed: Any) -> Outcome:
        body = {"template": TPL, "version": "ver-2", "server": A, "purpose": "edit", "user": "anna"}
        return await self.do("desktop.bench", desktop=desktop, **{**body, **changed})

    async def working(self, desktop: str = EDIT, **changed: Any) -> None:
        """Have a desktop on which anna works."""
        done(await self.bench(desktop, **changed))
        await self.live(20)
        assert self.states()[desktop] == "in_use"

    async def capture(self, desktop: str = EDIT, **changed: Any) -> Outcome:
        body = {"version": "ver-made", "image": "debian", "notes": "a new editor"}
        return await self.do("desktop.capture", desktop=desktop, **{**body, **changed})

    async def made(self, seconds: float = 30) -> int:
        """Let the maker work while time passes; return how many versions it made."""
        work = asyncio.ensure_future(self.capturing.run_once())
        for _ in range(round(seconds)):
            for _ in range(20):
                await asyncio.sleep(0.001)
            if work.done():
                break
            await self.clock.advance(1)
        return await work

    def numbers(self) -> list[int]:
        with self.grid.view() as db:
            return [one.number for one in versions(db)]

    def alarms(self) -> list[str]:
        with self.grid.view() as db:
            return [event.text for event in events(db, kind="alarm")]

    async def state(self, desktop: str = EDIT) -> DomainState | None:
        return next((d.state for d in await self.hypervisor.domains() if d.desktop == desktop), None)


@pytest.fixture
async def desk(tmp_path: Path) -> Bench:
    desk = Bench(tmp_path)
    await desk.open()
    return desk


async def test_an_administrators_desktop_is_theirs_and_in_no_pool(desk: Bench) -> None:
    await desk.working()
    one = desk.one(EDIT)
    assert (one.user, one.purpose, one.version) == ("anna", Purpose.EDIT, "ver-2")
    with desk.grid.view() as db:
        row = next(iter(db.query("select * from templates where id = 'tpl'")))
        assert living(db, row) == 0
        assert plan(look(db, {}, 0.0)).actions == ()
    none = await desk.do("desktop.claim", user="anna", template=TPL)
    assert "ready" in rejected(none, "none_ready")


async def test_what_breaks_on_the_bench_is_not_held_against_the_template(desk: Bench) -> None:
    for name in ("dsk-1", "dsk-2", "dsk-3"):
        done(await desk.bench(name))
        done(await desk.report("building", name))
        done(await desk.report("failed", name, step="guest", cause="no answer"))
    with desk.grid.view() as db:
        found = template(db, TPL)
    assert found is not None
    assert found.broken_cause == ""
    done(await desk.do("desktop.retry", desktop="dsk-1"))
    assert desk.one("dsk-1").user == "anna"


@pytest.mark.parametrize(
    ("changed", "because"),
    [
        ({"version": "ver-none"}, "no version ver-none"),
        ({"purpose": "use"}, "made to edit or to test"),
        ({"user": ""}, "somebody's"),
        ({"server": "srv-none"}, "takes no new desktops"),
    ],
)
async def test_a_desktop_that_cannot_be_given(desk: Bench, changed: dict[str, Any], because: str) -> None:
    assert because in rejected(await desk.bench(**changed), "refused")


async def test_so_many_on_the_bench_and_no_more(desk: Bench) -> None:
    for n in range(8):
        done(await desk.bench(f"dsk-{n}"))
    assert "remove one first" in rejected(await desk.bench("dsk-8"), "refused")


async def test_without_a_majority_no_guest_is_shut_down_for_a_version_that_could_not_be_added(desk: Bench) -> None:
    await desk.working()
    done(await desk.capture(keep=True))
    desk.log.cut_off.add(A)
    for _ in range(8):
        assert await desk.made(5) == 0
    assert await desk.state() is DomainState.RUNNING
    desk.log.cut_off.clear()
    assert await desk.made() == 1
    assert desk.alarms() == []


async def test_a_version_is_made_of_its_disk_and_published(desk: Bench) -> None:
    await desk.working()
    done(await desk.capture(publish={}))
    assert desk.capturing.holds() == {EDIT}
    assert await desk.made() == 1
    assert desk.numbers() == [1, 2, 3]
    with desk.grid.view() as db:
        found = template(db, TPL)
        assert found is not None
        assert found.version == "ver-made"
        newest = template_versions(db, TPL)[-1]
    assert (newest.notes, newest.author) == ("a new editor", "anna")
    assert desk.states()[EDIT] == "retired"
    await desk.live(4)
    assert EDIT not in desk.states()
    assert desk.capturing.holds() == frozenset()


async def test_it_may_be_tried_by_a_canary_first(desk: Bench) -> None:
    await desk.working()
    done(await desk.capture(publish={"canary": 1, "watch_s": 7}))
    await desk.made()
    with desk.grid.view() as db:
        (canary,) = canaries(db)
    assert (canary.version, canary.watch_s, canary.by) == ("ver-made", 7, "anna")


async def test_a_template_is_made_of_ones_own_desktop_which_goes_on(desk: Bench) -> None:
    done(await desk.place("dsk-1"))
    await desk.live(20)
    done(await desk.do("desktop.claim", user="anna", template=TPL))
    done(await desk.capture("dsk-1", image="annas disk", template="annas", keep=True))
    assert await desk.made() == 1
    with desk.grid.view() as db:
        made = template_by_name(db, "annas")
    assert made is not None
    assert (made.version, made.memory_mib, made.maximum) == ("ver-made", 64, 9)
    assert (desk.states()["dsk-1"], await desk.state("dsk-1")) == ("in_use", DomainState.RUNNING)


async def test_nothing_is_done_about_a_desktop_while_it_is_captured(desk: Bench) -> None:
    await desk.working()
    done(await desk.capture())
    await desk.hypervisor.agent(EDIT, "guest-shutdown", {}, 1)
    await desk.live(10)
    assert await desk.state() is DomainState.OFF, "the agent would have put it on again"


async def test_a_guest_that_does_not_shut_down_is_told_and_goes_on(desk: Bench) -> None:
    await desk.working()
    desk.hypervisor.guest.refuses["guest-shutdown"] = "no such command"  # type: ignore[attr-defined]
    done(await desk.capture())
    assert await desk.made(SHUTDOWN_S + 5) == 0
    (alarm,) = desk.alarms()
    assert "shutdown" in alarm
    assert "did not shut down" in alarm
    assert (desk.states()[EDIT], await desk.state(), desk.numbers()) == ("in_use", DomainState.RUNNING, [1, 2])
    assert desk.capturing.holds() == frozenset()
    assert isinstance(await desk.capture(), Applied), "it can be tried again"


async def test_a_disk_that_is_gone_is_told(desk: Bench) -> None:
    await desk.working()
    done(await desk.capture())
    desk.overlay(EDIT).unlink()
    assert await desk.made() == 0
    assert "is not on this server any more" in desk.alarms()[0]


async def test_whoever_begins_anew_makes_the_same_version(desk: Bench) -> None:
    """The daemon is killed after the version was told to the log, and before the capture was."""
    await desk.working()
    done(await desk.capture(publish={}))
    with desk.grid.view() as db:
        image = versions(db)[0].image
    body = {"size_bytes": 1 << 20, "used_bytes": 0, "block_bytes": 1 << 16, "manifest_hash": "a" * 64, "notes": ""}
    done(await desk.do("version.add", version="ver-made", image=image, server=A, **body))
    assert await desk.made() == 1
    assert desk.numbers() == [1, 2, 3]


async def test_a_desktop_that_is_removed_meanwhile_takes_its_capture_along(desk: Bench) -> None:
    await desk.working()
    done(await desk.capture())
    done(await desk.do("desktop.retire", desktop=EDIT, why="anna ordered it"))
    assert await desk.made() == 0
    assert desk.numbers() == [1, 2]


async def test_a_desktop_of_which_no_version_could_be_made_may_move_all_the_same(desk: Bench) -> None:
    await desk.working()
    done(await desk.capture())
    where = {"desktop": EDIT, "generation": 1, "server": A, "target": B, "why": "test"}
    assert "a version is being made" in rejected(await desk.do("desktop.move", **where), "refused")
    done(await desk.report("capture_failed", EDIT, version="ver-made", step="copy", cause="no room"))
    assert "does not have the golden image" in rejected(await desk.do("desktop.move", **where), "refused")


async def test_of_a_desktop_that_was_made_anew_meanwhile_no_version_is_made(desk: Bench) -> None:
    await desk.working()
    done(await desk.capture())
    done(await desk.report("failed", EDIT, step="run", cause="it went off"))
    done(await desk.do("desktop.retry", desktop=EDIT))
    await desk.live(20)
    assert desk.states()[EDIT] == "in_use"
    assert desk.capturing.holds() == frozenset()
    assert await desk.made() == 0
    assert (desk.numbers(), await desk.state()) == ([1, 2], DomainState.RUNNING)
    with desk.grid.view() as db:
        (found,) = captures(db)
    assert (found.state, found.step) == ("failed", "copy")
    assert isinstance(await desk.capture(), Applied), "another one can be asked for"


@pytest.mark.parametrize(
    ("changed", "because"),
    [
        ({"image": " "}, "not a name for an image"),
        ({"image": 3}, "are texts"),
        ({"publish": "now"}, "publish is an object"),
        ({"template": "Not A Name"}, "cannot be a template's name"),
        ({"template": "office"}, "already a template named office"),
        ({"template": "new", "publish": {}}, "not to both"),
    ],
)
async def test_a_version_that_cannot_be_made(desk: Bench, changed: dict[str, Any], because: str) -> None:
    await desk.working()
    assert because in rejected(await desk.capture(**changed), "refused")


async def test_only_of_ones_own_desktop_and_not_of_one_that_is_tested(desk: Bench) -> None:
    await desk.working("dsk-1", user="berta")
    rejected(await desk.capture("dsk-1"), "not_allowed")
    await desk.working("dsk-2", purpose="test")
    assert "ask for one to edit" in rejected(await desk.capture("dsk-2"), "refused")
    rejected(await desk.capture("dsk-none"), "not_found")
    await desk.working("dsk-3")
    done(await desk.capture("dsk-3"))
    rejected(await desk.capture("dsk-3"), "conflict")


async def test_a_late_report_brings_no_removed_desktop_back(desk: Bench) -> None:
    done(await desk.bench())
    done(await desk.do("desktop.retire", desktop=EDIT, why="x"))
    rejected(await desk.report("ready", EDIT), "conflict")
    assert desk.states()[EDIT] == "retired"
