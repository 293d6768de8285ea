"""A domain that somebody edits by hand: noticed, told in words, and made as it was at its next start."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kmgr.ids import DesktopId
from kmgr.provision.domainxml import edited, render
from kmgr.provision.hypervisor import DomainSpec
from tests.lab.provision import Desk, done

D1 = DesktopId("d-1")
FILES = ("/k/desktops/d-1.qcow2", "/k/run/d-1.vnc", "/k/desktops/d-1.log")
SPEC = DomainSpec(D1, 1, "office-1", "grid-1", "office", 2, 2048, *FILES, "tcg", "user")


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, ram="/k/warm/ram"), replace(SPEC, network="bridge:br0")])
def test_what_was_not_touched_is_not_called_edited(spec: DomainSpec) -> None:
    assert edited(render(spec)) == ""
    as_libvirt_writes_it = render(spec).replace('<memory unit="MiB">2048<', '<memory unit="KiB">2097152<')
    assert as_libvirt_writes_it != render(spec)
    assert edited(as_libvirt_writes_it) == ""


def test_one_that_went_to_another_server_is_not_edited_by_that() -> None:
    assert edited(render(SPEC).replace("/k/desktops/", "/srv/kmgr/desktops/")) == ""


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        (">2048<", ">4096<", "its memory is 4194304 KiB instead of 2097152"),
        (">2</vcpu>", ">8</vcpu>", "it has 8 CPUs instead of 2"),
        ("/d-1.qcow2", "/other.qcow2", "its disks are other.qcow2 instead of d-1.qcow2"),
        ("</devices>", "<hostdev/></devices>", "1 devices of the server are passed through instead of 0"),
        ("</devices>", '<interface type="user"/></devices>', "it has 2 network cards instead of 1"),
        ("</devices>", '<graphics type="spice"/></devices>', "it has 2 screens instead of 1"),
    ],
)
def test_what_was_changed_is_said_in_words(was: str, now: str, told: str) -> None:
    xml = render(SPEC)
    assert was in xml
    assert edited(xml.replace(was, now)) == told


def test_a_domain_of_an_older_release_is_not_judged() -> None:
    xml = render(SPEC)
    start = xml.index(' defined="')
    end = xml.index('"', start + len(' defined="'))
    assert edited((xml[:start] + xml[end + 1 :]).replace(">2048<", ">1<")) == ""


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    await desk.found()
    done(await desk.place(D1))
    await desk.live(14)
    yield desk
    await desk.agent.stop()
    desk.grid.close()


@pytest.mark.parametrize("used", [False, True])
async def test_it_is_told_left_alone_while_it_runs_and_made_as_it_was_at_its_next_start(
    desk: Desk, used: bool
) -> None:
    if used:
        done(await desk.do("desktop.claim", user="bea", template="tpl"))
    desk.hypervisor.edit(D1, "it has 8 CPUs instead of 1")
    await desk.live(6)
    assert desk.states() == {D1: "in_use" if used else "ready"}, "whoever works on it goes on"
    (status,) = await desk.hypervisor.domains()
    assert status.edited
    (problem,) = desk.agent.problems()
    assert "changed by hand (d-1: it has 8 CPUs instead of 1)" in problem
    assert "made as it was when it is started next" in desk.agent.waiting(D1)
    assert desk.agent.can_run(), "the others are not affected"
    desk.hypervisor.power_off(D1)
    await desk.live(20)
    (status,) = await desk.hypervisor.domains()
    assert status.edited == ""
    assert desk.agent.problems() == ()
    assert desk.states() == {D1: "in_use" if used else "ready"}
