"""What a template changes about a desktop waits for its next start, is shown until then, and is there after it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmgr.ids import DesktopId
from kmgr.provision.hypervisor import DomainState
from kmgr.provision.outfit import outfit, pending
from kmgr.templates.model import Template
from kmgr.templates.policy import Devices, Policy
from kmgr.templates.queries import template as find_template
from tests.lab.provision import Desk, done
from tests.unit.test_users_over import a_desktop

D1 = DesktopId("dsk-4k2mzzzzzzzz")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    await desk.found(policy={"seed": "nocloud", "network": "blue"})
    done(await desk.place(D1))
    await desk.live(14)
    done(await desk.do("desktop.claim", user="anna", template="tpl"))
    yield desk
    await desk.agent.stop()
    desk.grid.close()


def seed_of(desk: Desk) -> bytes:
    """Return the seed disk that lies beside the desktop's own, empty if there is none."""
    path = desk.folder / "desktops" / f"{D1}.seed.iso"
    return path.read_bytes() if path.exists() else b""


def made_from(desk: Desk) -> Template:
    with desk.grid.view() as db:
        found = find_template(db, desk.one(D1).template)
    assert found is not None
    return found


async def change(desk: Desk, **changes: Any) -> None:
    done(await desk.do("template.update", template="tpl", **changes))


async def test_a_desktop_is_made_with_what_its_template_says(desk: Desk) -> None:
    spec = desk.hypervisor.spec(D1)
    assert (spec.network, spec.devices) == ("network:blue", Devices())
    lies = seed_of(desk)
    assert lies[32769:32774] == b"CD001"
    assert b'"local-hostname": "office-1"' in lies
    assert pending(desk.one(D1), made_from(desk)) == ()


async def test_a_change_waits_for_the_next_start_and_then_is_there(desk: Desk) -> None:
    devices = {"sound": True, "video_mib": 64}
    await change(desk, vcpus=4, memory_mib=128, policy={"network": "", "devices": devices})
    assert pending(desk.one(D1), made_from(desk)) == (
        "4 virtual CPUs instead of 1",
        "128 MiB of memory instead of 64",
        "the server's usual network",
        "a sound card",
        "64 MiB of video memory",
    )
    await desk.live(10)
    assert desk.hypervisor.spec(D1).vcpus == 1
    desk.hypervisor.power_off(D1)
    await desk.live(10)
    spec = desk.hypervisor.spec(D1)
    assert (spec.vcpus, spec.memory_mib, spec.network) == (4, 128, "user")
    assert spec.devices == Devices(sound=True, video_mib=64)
    assert pending(desk.one(D1), made_from(desk)) == ()
    [now] = await desk.hypervisor.domains()
    assert now.state is DomainState.RUNNING


async def test_what_a_server_cannot_tell_now_does_not_keep_a_desktop_from_starting(desk: Desk) -> None:
    await change(desk, vcpus=4)
    desk.log.cut_off.add(desk.grid.server)
    desk.hypervisor.power_off(D1)
    await desk.live(4)
    [now] = await desk.hypervisor.domains()
    assert (now.state, desk.hypervisor.spec(D1).vcpus) == (DomainState.RUNNING, 1)
    desk.log.cut_off.clear()


async def test_the_seed_goes_with_its_desktop(desk: Desk) -> None:
    assert seed_of(desk)
    done(await desk.do("desktop.release", desktop=D1, user="anna"))
    await desk.live(6)
    assert not seed_of(desk)


def test_of_a_desktop_from_before_only_its_size_is_known() -> None:
    desktop = a_desktop(vcpus=2, memory_mib=512)
    template = replace(_template(), vcpus=2, memory_mib=512, policy=Policy(network="blue"))
    assert pending(desktop, template) == ()
    assert pending(replace(desktop, outfit=outfit(Policy())), template) == ("the network blue",)


def _template() -> Template:
    names = dict.fromkeys(("id", "name", "notes", "image", "version", "refresh", "broken_cause"), "x")
    numbers = dict.fromkeys(("vcpus", "memory_mib", "standby", "maximum", "created_at", "changed_at"), 1)
    return Template(**names, **numbers, enabled=True)  # type: ignore[arg-type]
