"""Guests of a canary that fall silent after they were ready: they fail it; whoever cannot answer does not."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.balancer.canaries import Canaries
from kmgr.errors import Unavailable
from kmgr.grid.queries import events
from kmgr.ids import DesktopId, VersionId
from kmgr.provision.canary_watch import SILENT_S, CanaryWatch
from kmgr.templates.version_queries import canaries, template_versions
from tests.lab.provision import Desk, done

OLD, D1 = DesktopId("d-old"), DesktopId("d-1")


class Trial(Desk):
    """A server with a ready desktop of the present version and one of a canary's, watched for two minutes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, max_builds=2)
        self.silent: set[DesktopId] = set()
        self.gone = ""
        self.watch_guests = CanaryWatch(self.grid, self.hypervisor, clock=self.clock)
        self.judge = Canaries(self.grid, clock=self.clock)
        self._answers = self.hypervisor.answers
        self.hypervisor.answers = self.answers  # type: ignore[method-assign]

    async def answers(self, desktop: DesktopId) -> bool:
        if self.gone:
            raise Unavailable(self.gone)
        return desktop not in self.silent and await self._answers(desktop)

    async def begin(self) -> None:
        await self.found(standby=1)
        await self.version("ver-2")
        done(await self.place(OLD))
        done(await self.do("template.publish", template="tpl", version="ver-2", canary=1, watch_s=120))
        done(await self.place(D1, version="ver-2"))
        await self.live(14)
        assert set(self.states().values()) == {"ready"}

    async def pass_(self, seconds: float) -> None:
        for _ in range(round(seconds / 5)):
            await self.watch_guests.run_once()
            await self.judge.run_once()
            await self.clock.advance(5, settle=2)

    def stand(self) -> str:
        with self.grid.view() as db:
            return str({one.version: one for one in template_versions(db)}[VersionId("ver-2")].stand)

    def going(self) -> int:
        with self.grid.view() as db:
            return len(canaries(db))


@pytest.fixture
async def trial(tmp_path: Path) -> AsyncIterator[Trial]:
    trial = Trial(tmp_path)
    await trial.begin()
    yield trial
    await trial.agent.stop()
    trial.grid.close()


async def test_one_that_goes_on_answering_passes(trial: Trial) -> None:
    await trial.pass_(130)
    assert trial.stand() == "published"


async def test_one_that_falls_silent_after_it_was_ready_stops_the_canary(trial: Trial) -> None:
    await trial.pass_(30)
    trial.silent |= {D1, OLD}
    await trial.pass_(SILENT_S + 15)
    assert trial.stand() == "stopped"
    assert trial.states()[OLD] == "ready", "only the canary's are asked"
    with trial.grid.view() as db:
        (alarm,) = [event.text for event in events(db, kind="alarm")]
    assert "silent for 30 s since" in alarm


async def test_one_that_answers_now_and_then_is_not_silent(trial: Trial) -> None:
    for _ in range(4):
        trial.silent.add(D1)
        await trial.pass_(25)
        trial.silent.clear()
        await trial.pass_(5)
    await trial.pass_(10)
    assert trial.stand() == "published"


async def test_what_cannot_answer_or_is_used_is_left_alone(trial: Trial) -> None:
    trial.gone = "libvirt is not answering"
    await trial.pass_(60)
    assert (trial.states()[D1], trial.going()) == ("ready", 1)
    trial.gone = ""
    trial.silent.add(D1)
    await trial.hypervisor.suspend(D1)
    await trial.pass_(30)
    assert (trial.states()[D1], trial.going()) == ("ready", 1)
