"""A personal desktop whose safe copy has gone bad: nothing is started from it by itself, and both ways out work."""

from kmgr.ids import ServerId
from kmgr.provision.causes import Trouble
from kmgr.provision.model import CopyState, Desktop, DesktopState
from kmgr.provision.personal_disks import PersonalDisks
from kmgr.provision.timely import at_once
from tests.lab.whole_grid import Lab
from tests.simulation.test_personal import copies_of, disk, lab, protected, running, theirs

__all__ = ["lab"]


async def gone_bad(lab: Lab) -> tuple[Desktop, ServerId, ServerId]:
    """Lose the server of Anna's desktop, whose safe copy has gone bad; return it, its server and the holder."""
    desktop = await protected(lab)
    home, holder = desktop.server, copies_of(lab, desktop)[0].server
    lab.disks.write(disk(lab, home, desktop), "work")
    disk(lab, home, desktop).write_text("work")
    await lab.wait(30)
    lab.at(holder).store.bad[desktop.id] = "its safe copy on this server has gone bad: 3 of its 40 places"
    lab.cut(home)
    await lab.wait(40)
    return theirs(lab), home, holder


async def test_a_copy_that_has_gone_bad_is_started_only_after_somebody_read_that_and_said_so(lab: Lab) -> None:
    desktop, _, holder = await gone_bad(lab)
    assert (desktop.server, desktop.state, desktop.trouble) == (holder, DesktopState.BROKEN, Trouble.BAD_COPY)
    assert "3 of its 40 places" in desktop.cause
    assert not running(lab, desktop)
    # Nobody tries by itself, and a daemon that starts anew starts nothing either.
    await lab.at(holder).stop()
    await lab.at(holder).start()
    await lab.wait(120)
    assert not running(lab, desktop)
    # What was read and what is found must be the same.
    lab.at(holder).store.bad[desktop.id] = "its safe copy on this server has gone bad: 4 of its 40 places"
    await lab.do("desktop.retry", desktop=desktop.id)
    await lab.wait(20)
    assert "4 of its 40 places" in theirs(lab).cause
    assert not running(lab, desktop)
    await lab.do("desktop.retry", desktop=desktop.id)
    await lab.wait(20)
    assert running(lab, desktop) == [holder]
    assert lab.disks.content[disk(lab, holder, desktop)] == "work"
    assert any("had gone bad: files may be damaged" in text for text in lab.texts("alarm"))


async def test_a_copy_that_somebody_removed_is_missed_until_it_was_made_again(lab: Lab) -> None:
    desktop = await protected(lab)
    (copy,) = copies_of(lab, desktop)
    there = lab.at(copy.server)
    disks = PersonalDisks(
        there.log, there.store, there.hypervisor, data_dir=there.folder, clock=lab.clock, blocking=at_once
    )
    await disks.tidy()
    assert disks.missing == frozenset()
    del lab.disks.copies[copy.server, desktop.id, copy.generation]
    await disks.tidy()
    assert disks.missing == {desktop.id}
    await lab.wait(120)
    await disks.tidy()
    assert disks.missing == frozenset()


async def test_instead_of_a_bad_copy_the_disk_of_the_server_that_came_back_is_put_back(lab: Lab) -> None:
    desktop, home, holder = await gone_bad(lab)
    lab.mend(home)
    await lab.wait(20)
    (former,) = copies_of(lab, desktop, CopyState.SUPERSEDED)
    assert former.server == home
    key = {"desktop": desktop.id, "generation": desktop.generation}
    await lab.do("desktop.put_back", **key, server=home, disk=former.generation)
    await lab.wait(30)
    assert running(lab, desktop) == [home]
    assert disk(lab, home, desktop).read_text() == "work"
    assert [copy.state for copy in copies_of(lab, desktop)] == [CopyState.READY]
    assert any("which has gone bad, and goes" in text for text in lab.texts("copy"))
    assert (holder, desktop.id, 1) not in lab.disks.copies
