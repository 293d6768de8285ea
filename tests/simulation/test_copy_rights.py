"""Only the server that may run a desktop brings its safe copy up to date: asked of the daemon's own parts."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest

from kmgr.config import Config
from kmgr.daemon.personal import PersonalParts
from kmgr.errors import Refused, Unavailable
from kmgr.grid.identity import Identity as Own
from kmgr.ids import ServerId
from kmgr.provision.model import CopyState, Desktop
from kmgr.replica import mirror_wire as wire
from kmgr.replica.images import Images
from kmgr.replica.mirror_send import unlimited
from kmgr.replica.mirror_state import Identity
from tests.lab.whole_grid import Lab
from tests.simulation.test_personal import copies_of, protected, theirs


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    await lab.create(kind="personal", standby=1)
    yield lab
    await lab.close()


def keep(lab: Lab, holder: ServerId) -> PersonalParts:
    """Put the daemon's parts beside a server of the lab: they take copies there."""
    server = lab.at(holder)
    own = Own(holder, holder, "grid-1", "grid", b"", b"", b"", b"")
    config = Config(data_dir=server.folder, name=holder[4:], libvirt_uri="")
    requests = lab.network.port(holder)
    images = Images(server.folder)
    return PersonalParts(
        config, own, server.log, requests, images, server.hypervisor, clock=lab.clock, slow=unlimited
    )


async def asked(lab: Lab, sender: ServerId, holder: ServerId, desktop: Desktop, generation: int) -> str:
    """Begin a cycle, as any server of the grid could; return how it is answered."""
    body = {"disk": asdict(Identity(desktop.id, generation, desktop.version, "0" * 64, 1 << 20))}
    try:
        stream = await lab.network.port(sender).open(holder, wire.STREAM, body)
    except (Refused, Unavailable) as error:
        # Whoever may send is told what else is missing: there is no real image in the lab.
        return "taken" if error.code == "wrong_base" else error.message
    stream.writer.close()
    return "taken"


async def test_a_copy_takes_points_from_the_server_alone_that_may_run_its_desktop(lab: Lab) -> None:
    desktop = await protected(lab)
    (copy,) = copies_of(lab, desktop)
    home, holder = desktop.server, copy.server
    other = next(server for server in lab.ids if server not in (home, holder))
    for server in lab.ids:
        keep(lab, server)
    assert await asked(lab, home, holder, desktop, 1) == "taken"
    assert "does not belong to server" in await asked(lab, other, holder, desktop, 1)
    assert "does not belong" in await asked(lab, home, holder, desktop, 2)
    assert "does not belong" in await asked(lab, home, other, desktop, 1), "nobody wants a copy there"
    # It goes on elsewhere: who was its server has nothing to say any more, nor had since it was lost.
    lab.cut(home)
    await lab.wait(8)
    assert lab.server_states()[home] == "lost"
    lab.network.down.discard(home)
    assert "does not belong" in await asked(lab, home, holder, desktop, 1)
    lab.network.down.add(home)
    await lab.clock.advance(30)
    now = theirs(lab)
    assert (now.server, now.generation) == (holder, 2)
    lab.mend(home)
    assert "does not belong" in await asked(lab, home, holder, desktop, 1)
    await lab.clock.advance(30)
    (copy,) = copies_of(lab, desktop, CopyState.READY)
    assert "does not belong" in await asked(lab, home, copy.server, desktop, 1)
    assert await asked(lab, holder, copy.server, desktop, 2) == "taken"


async def test_who_knows_nothing_yet_asks_the_log_before_it_refuses(lab: Lab) -> None:
    desktop = await protected(lab)
    (copy,) = copies_of(lab, desktop)
    keep(lab, copy.server)
    grid = lab.at(copy.server).log
    real, barriers = grid.barrier, 0

    async def counted(timeout_s: float = 5.0) -> None:
        nonlocal barriers
        barriers += 1
        await real(timeout_s)

    grid.barrier = counted  # type: ignore[method-assign]
    await asked(lab, desktop.server, copy.server, desktop, 1)
    assert barriers == 0
    await asked(lab, desktop.server, copy.server, desktop, 7)
    assert barriers == 1
