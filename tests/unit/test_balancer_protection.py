"""Who is given a safe copy, and what becomes of a desktop whose former disk is kept or put back."""

from dataclasses import replace

import pytest

from kmgr.balancer import protection
from kmgr.balancer.evacuate import evacuate
from kmgr.balancer.model import Assign, Forget, GoOn, PutAside, View
from kmgr.balancer.place import disk_reserve_mib
from kmgr.balancer.protection import protect, unable
from kmgr.grid.model import Server, ServerState, Vitals
from kmgr.ids import AccountName, DesktopId, ServerId, TemplateId, VersionId
from kmgr.provision.model import Copy, CopyState, Desktop, DesktopState
from kmgr.provision.outfit import outfit
from kmgr.replica.protect import UNKNOWN_MIB
from kmgr.templates.machine import Firmware, Machine
from kmgr.templates.model import Kind
from kmgr.templates.policy import Policy

A, B, C = (ServerId(f"srv-{letter}") for letter in "abc")
VERSION = VersionId("ver-1")


def desktop(number: int, server: ServerId = A, generation: int = 1) -> Desktop:
    return Desktop(
        DesktopId(f"dsk-{number}"), f"own-{number}", TemplateId("tpl"), VERSION, server, DesktopState.IN_USE,
        generation, 1, 512, AccountName("anna"), 0, "", "", 0, 0, 0, Kind.PERSONAL,
    )  # fmt: skip


def copy(number: int, server: ServerId, state: CopyState, generation: int = 1, mib: int = 0) -> Copy:
    return Copy(DesktopId(f"dsk-{number}"), server, generation, state, None, mib << 20, 0)


def view(*desktops: Desktop, copies: tuple[Copy, ...] = (), free_mib: int = 100_000) -> View:
    """Return two servers that are up, the second with so much room for copies beyond its reserve."""
    servers = tuple(Server(s, s[4:], f"{s}:1", f"{s}:2", ServerState.UP, "1", "", 0, 7) for s in (A, B))
    beat = Vitals(A, 0.0, cpus=4, memory_mib=8000, memory_free_mib=8000)
    beat = replace(beat, disk_free_mib=free_mib + disk_reserve_mib(beat))
    vitals = {A: beat, B: replace(beat, server=B)}
    holders = {VERSION: frozenset({A, B})}
    return View(servers, (), tuple(desktops), holders, vitals, {}, copies=copies)


def away(seen: View, state: ServerState, *, fenced: bool) -> View:
    servers = (replace(seen.servers[0], state=state), *seen.servers[1:])
    return replace(seen, servers=servers, fenced=frozenset({A}) if fenced else frozenset())


def assigned(seen: View) -> list[DesktopId]:
    return [action.desktop.id for action in protect(seen) if isinstance(action, Assign)]


def test_room_that_was_promised_in_an_earlier_round_is_not_promised_again() -> None:
    # One of unknown size fits, and nothing of it has come when the second round looks.
    assert assigned(view(desktop(1), free_mib=UNKNOWN_MIB)) == ["dsk-1"]
    waiting = copy(1, B, CopyState.WANTED)
    assert assigned(view(desktop(1), desktop(2), copies=(waiting,), free_mib=UNKNOWN_MIB)) == []
    assert assigned(view(desktop(1), desktop(2), copies=(waiting,), free_mib=2 * UNKNOWN_MIB)) == ["dsk-2"]
    # What is complete is on the disk, and missing in what is free there.
    ready = copy(1, B, CopyState.READY, mib=UNKNOWN_MIB)
    assert assigned(view(desktop(1), desktop(2), copies=(ready,), free_mib=UNKNOWN_MIB)) == ["dsk-2"]


def test_a_desktop_is_forgotten_with_its_server_only_if_nothing_of_it_is_kept() -> None:
    for kept in (
        copy(1, B, CopyState.SUPERSEDED, 1),
        copy(1, B, CopyState.STARTING, 1),
        copy(1, B, CopyState.LEFT, 1),
    ):
        seen = away(view(desktop(1, generation=2), copies=(kept,)), ServerState.REMOVED, fenced=True)
        assert list(evacuate(seen)) == []
    bare = away(view(desktop(1, generation=2)), ServerState.REMOVED, fenced=True)
    assert list(evacuate(bare)) == [Forget(DesktopId("dsk-1"))]
    there = away(view(desktop(1), copies=(copy(1, A, CopyState.SUPERSEDED),)), ServerState.REMOVED, fenced=True)
    assert list(evacuate(there)) == [Forget(DesktopId("dsk-1"))]


def test_while_a_former_disk_is_put_back_it_is_neither_copied_nor_started_and_a_loss_is_waited_out() -> None:
    seen = replace(
        view(desktop(1), copies=(copy(1, B, CopyState.SUPERSEDED),)), put_backs=frozenset({DesktopId("dsk-1")})
    )
    assert protect(seen) == ()
    assert protect(away(seen, ServerState.LOST, fenced=False)) == ()
    lost = away(seen, ServerState.LOST, fenced=True)
    assert protect(lost) == (PutAside(lost.desktops[0], 7),)
    assert not any(isinstance(action, GoOn) for action in protect(lost))


def uefi(seen: View, *able: ServerId, bad: ServerId | None = None) -> View:
    """Let all desktops be started by UEFI, which some servers are `able` to; what `bad` has of the first went bad."""
    desktops = tuple(replace(one, outfit=outfit(Policy(machine=Machine(Firmware.UEFI)))) for one in seen.desktops)
    vitals = {
        server: replace(
            beat,
            can_run_desktops=True,
            extra={"machines": ["uefi"] if server in able else [], "bad_copies": ["dsk-1"] if server == bad else []},
        )
        for server, beat in seen.vitals.items()
    }
    return replace(seen, desktops=desktops, vitals=vitals)


def three(*desktops: Desktop, copies: tuple[Copy, ...] = ()) -> View:
    seen = view(*desktops, copies=copies)
    third = replace(seen.servers[1], id=C, name="c")
    return replace(seen, servers=(*seen.servers, third), vitals={**seen.vitals, C: replace(seen.vitals[B], server=C)})


def test_a_copy_goes_where_its_desktops_machine_can_be_made_even_if_the_image_is_not_there() -> None:
    seen = three(desktop(1))
    assert protect(uefi(seen, C)) == (Assign(uefi(seen).desktops[0], C),)
    # As long as nobody can make it, it is better than none, and stays.
    assert protect(uefi(seen)) == (Assign(uefi(seen).desktops[0], B),)
    for state in (CopyState.WANTED, CopyState.READY):
        kept = three(desktop(1), copies=(copy(1, B, state),))
        assert protect(uefi(kept)) == ()
        assert protect(uefi(kept, B)) == ()
        assert protect(uefi(kept, C)) == (Assign(uefi(kept).desktops[0], C),)
    both = three(desktop(1), copies=(copy(1, B, CopyState.READY), copy(1, C, CopyState.WANTED)))
    assert protect(uefi(both, C)) == ()


def test_a_desktop_goes_on_only_where_its_machine_can_be_made() -> None:
    lost = away(three(desktop(1), copies=(copy(1, B, CopyState.READY),)), ServerState.LOST, fenced=True)
    assert protect(uefi(lost, C)) == ()
    (going,) = protect(uefi(lost, B))
    assert isinstance(going, GoOn)
    assert going.target == B


def test_a_desktop_goes_on_from_a_bad_copy_only_if_there_is_no_other() -> None:
    ready = tuple(replace(copy(1, server, CopyState.READY), as_of=as_of) for server, as_of in ((B, 9), (C, 5)))
    lost = away(three(desktop(1), copies=ready), ServerState.LOST, fenced=True)
    for bad, target in ((None, B), (B, C), (C, B)):
        (going,) = protect(uefi(lost, B, C, bad=bad))
        assert isinstance(going, GoOn)
        assert going.target == target
    alone = away(three(desktop(1), copies=ready[:1]), ServerState.LOST, fenced=True)
    assert [type(one) for one in protect(uefi(alone, B, bad=B))] == [GoOn]


def test_what_servers_can_make_is_asked_once_for_each_kind_of_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Machine] = []

    def counted(seen: View, machine: Machine) -> frozenset[ServerId]:
        asked.append(machine)
        return unable(seen, machine)

    monkeypatch.setattr(protection, "unable", counted)
    many = uefi(three(*(desktop(n) for n in range(20))), C)
    assert {action.server for action in protect(many) if isinstance(action, Assign)} == {C}
    assert asked == [Machine(Firmware.UEFI)]
