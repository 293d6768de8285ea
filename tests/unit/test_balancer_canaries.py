"""The leader's watch over canaries and dates: what it waits for, what it proposes; a new leader begins anew."""

import asyncio
from pathlib import Path

from kmgr.balancer.canaries import Canaries, due
from kmgr.grid.queries import events
from kmgr.ids import TemplateId, VersionId
from kmgr.provision.queries import desktops
from kmgr.templates.queries import template
from kmgr.templates.version_queries import canaries, template_versions
from kmgr.templates.versions import Stand, TemplateVersion
from tests.lab.provision import A, Office, done

TPL = TemplateId("tpl")


class Trial(Office):
    """That office while a canary of ver-2 with two desktops goes on, watched for a minute."""

    async def begin(self) -> Canaries:
        await self.found()
        await self.version("ver-2")
        done(await self.do("template.publish", template=TPL, version="ver-2", canary=2))
        return Canaries(self.grid, clock=self.clock)

    async def make(self, name: str) -> None:
        done(await self.place(name, version="ver-2"))
        for report in ("building", "ready"):
            done(await self.report(report, name))

    def default(self) -> str:
        with self.grid.view() as db:
            found = template(db, TPL)
        assert found is not None
        return found.version

    def going(self) -> int:
        with self.grid.view() as db:
            return len(canaries(db))

    def alarms(self) -> list[str]:
        with self.grid.view() as db:
            return [event.text for event in events(db, kind="alarm")]


def test_it_passes_after_all_were_ready_for_the_time_they_are_watched(tmp_path: Path) -> None:
    async def scenario() -> None:
        trial = Trial(tmp_path)
        watch = await trial.begin()
        await trial.make("dsk-1")
        assert await watch.run_once() == 0
        await trial.clock.advance(50)
        await trial.make("dsk-2")
        await watch.run_once()
        await trial.clock.advance(59)
        await watch.run_once()
        assert (trial.default(), trial.going()) == ("ver-1", 1)
        await trial.clock.advance(1)
        assert await watch.run_once() == 1
        assert (trial.default(), trial.going(), trial.alarms()) == ("ver-2", 0, [])

    asyncio.run(scenario())


def test_one_that_boots_again_is_watched_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        trial = Trial(tmp_path)
        watch = await trial.begin()
        for name in ("dsk-1", "dsk-2"):
            await trial.make(name)
        await watch.run_once()
        done(await trial.report("building", "dsk-1"))
        await trial.clock.advance(60)
        await watch.run_once()
        done(await trial.report("ready", "dsk-1"))
        await watch.run_once()
        await trial.clock.advance(59)
        await watch.run_once()
        assert trial.default() == "ver-1"

    asyncio.run(scenario())


def test_a_desktop_that_is_tested_by_hand_is_not_one_of_its(tmp_path: Path) -> None:
    async def scenario() -> None:
        trial = Trial(tmp_path)
        watch = await trial.begin()
        await trial.make("dsk-1")
        body = {"template": TPL, "version": "ver-2", "server": A, "purpose": "test", "user": "anna"}
        done(await trial.do("desktop.bench", desktop="dsk-2", **body))
        for report in ("building", "ready"):
            done(await trial.report(report, "dsk-2"))
        await watch.run_once()
        await trial.clock.advance(60)
        assert await watch.run_once() == 0

    asyncio.run(scenario())


def test_a_failure_stops_it_with_one_alarm_that_names_version_step_and_cause(tmp_path: Path) -> None:
    async def scenario() -> None:
        trial = Trial(tmp_path)
        watch = await trial.begin()
        done(await trial.place("dsk-1", version="ver-2"))
        done(await trial.report("building", "dsk-1"))
        done(await trial.report("failed", "dsk-1", step="guest", cause="the guest did not answer"))
        await watch.run_once()
        await watch.run_once()
        assert (trial.default(), trial.going()) == ("ver-1", 0)
        (alarm,) = trial.alarms()
        assert all(word in alarm for word in ("office", "version 2", "guest", "did not answer", "Version 1 goes on"))

    asyncio.run(scenario())


def test_a_new_leader_gives_it_its_full_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        trial = Trial(tmp_path)
        watch = await trial.begin()
        await watch.run_once()
        await trial.clock.advance(950)
        other = Canaries(trial.grid, clock=trial.clock)
        assert await other.run_once() == 0
        await trial.clock.advance(11)
        assert await other.run_once() == 0
        assert await watch.run_once() == 1
        assert "no server could make" in trial.alarms()[0]

    asyncio.run(scenario())


def test_nobody_is_retired_by_a_verdict(tmp_path: Path) -> None:
    async def scenario() -> None:
        trial = Trial(tmp_path)
        watch = await trial.begin()
        await trial.standby("old-1")
        done(await trial.do("desktop.claim", user="anna", template=TPL))
        done(await trial.place("dsk-1", version="ver-2"))
        done(await trial.report("building", "dsk-1"))
        done(await trial.report("failed", "dsk-1", step="start", cause="no such machine"))
        await watch.run_once()
        with trial.grid.view() as db:
            assert {d.id: d.state for d in desktops(db)} == {"old-1": "in_use", "dsk-1": "broken"}

    asyncio.run(scenario())


def test_dates_that_have_come_are_told_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        trial = Trial(tmp_path)
        watch = await trial.begin()
        now = trial.clock.now_ms()
        body = {"template": TPL, "version": "ver-1", "soft_at": now + 1000, "hard_at": now + 2000}
        done(await trial.do("template.expiry", **body))
        assert await watch.run_once() == 0
        await trial.clock.advance(1)
        assert [await watch.run_once() for _ in range(2)] == [1, 0]
        await trial.clock.advance(1)
        assert [await watch.run_once() for _ in range(2)] == [1, 0]
        with trial.grid.view() as db:
            assert template_versions(db, TPL)[0].stand is Stand.ENDED

    asyncio.run(scenario())


def test_what_was_stopped_or_withdrawn_need_not_expire() -> None:
    of = {"template": TPL, "version": VersionId("ver-1"), "number": 1, "notes": "", "author": "", "at": 0}
    for stand in (Stand.STOPPED, Stand.WITHDRAWN, Stand.ENDED):
        assert list(due([TemplateVersion(**of, stand=stand, soft_at=1, hard_at=2)], 5)) == []  # type: ignore[arg-type]
