"""Which desktops move while somebody works on them."""

from collections import Counter
from dataclasses import replace

import pytest

from kmgr.balancer.drains import stays
from kmgr.balancer.model import Relocate, Why
from kmgr.balancer.plan import plan
from kmgr.balancer.relocate import EACH_AT_ONCE, MOST_FAILURES, MUCH_FULLER
from kmgr.grid.model import Processor
from kmgr.ids import ServerId
from kmgr.provision.outfit import outfit
from kmgr.templates.machine import Firmware, Machine
from kmgr.templates.policy import Policy
from tests.lab.state import State

A, B, C = (ServerId(f"srv-{letter}") for letter in "abc")
UEFI = Policy(machine=Machine(Firmware.UEFI))
CHIP = Processor("AMD", "family 25 model 17", frozenset({"avx2", "sse4.2"}))


@pytest.fixture
def state() -> State:
    state = State()
    for name in "abc":
        state.server(name)
    state.version("ver-1", [A, B, C])
    state.template("win", standby=0, maximum=100)
    return state


def used(state: State, server: ServerId, count: int = 1, **fields: object) -> list[str]:
    return [state.desktop("tpl-win", server, "in_use", user=f"u{n}-{server}", **fields) for n in range(count)]  # type: ignore[arg-type]


def planned(state: State) -> list[Relocate]:
    return [action for action in plan(state.view()).actions if isinstance(action, Relocate)]


def test_what_is_used_on_a_draining_server_goes_to_the_emptiest_others(state: State) -> None:
    used(state, A, 2)
    used(state, B, 3)
    state.hear(B, memory_free_mib=50_000)
    state.become(A, "draining")
    assert [(move.target, move.why) for move in planned(state)] == [(C, Why.DRAINING)] * 2


def test_only_a_few_leave_a_server_at_once_and_the_next_follow(state: State) -> None:
    used(state, A, 5)
    state.become(A, "draining")
    rounds = 0
    while moves := planned(state):
        assert len(moves) <= EACH_AT_ONCE
        state.carry_out(moves)
        assert planned(state) == []
        state.make_everything()
        rounds += 1
    assert rounds == 3
    assert all(d.server in (B, C) and d.generation == 2 for d in state.view().desktops)


def test_what_a_version_is_made_of_goes_when_that_is_done(state: State) -> None:
    desktop = state.desktop("tpl-win", A, "in_use", user="test")
    state.db.execute(
        "insert into captures (desktop, generation, server, version, image, notes, how, by, at, state, step, cause)"
        " values (?, 1, ?, 'ver-2', 'debian', '', '{}', 'test', 1, 'wanted', '', '')",
        [desktop, A],
    )
    state.become(A, "draining")
    assert planned(state) == []
    state.db.execute("delete from captures")
    assert [move.desktop.id for move in planned(state)] == [desktop]


def test_one_goes_only_where_its_image_memory_and_means_are(state: State) -> None:
    used(state, A)
    state.become(A, "draining")
    state.hear(A, accelerator="kvm", processor=CHIP)
    state.hear(B, accelerator="kvm", processor=CHIP, memory_free_mib=600)
    state.hear(C, accelerator="tcg", processor=CHIP)
    assert planned(state) == []
    state.hear(C, accelerator="kvm", processor=CHIP)
    state.db.execute("delete from holdings where server = 'srv-c'")
    assert planned(state) == []
    state.hold("ver-1", C)
    assert [move.target for move in planned(state)] == [C]


OTHERS = [
    (None, "another processor: that is not known"),
    (Processor("Intel", "family 6 model 85", CHIP.features), "Intel family 6 model 85, not AMD family 25 model 17"),
    (replace(CHIP, features=frozenset({"sse4.2"})), "lacks avx2"),
]


@pytest.mark.parametrize(("other", "why"), OTHERS)
def test_one_goes_only_where_the_processor_can_do_what_its_guest_found(
    state: State, other: Processor | None, why: str
) -> None:
    (made,) = used(state, A)
    state.become(A, "draining")
    for server in (A, B, C):
        state.hear(server, accelerator="kvm", processor=CHIP if server == A else other)
    assert planned(state) == []
    (waits,) = stays(state.view(), A)
    assert (waits.desktop, why in waits.why) == (made, True), waits.why
    state.hear(A, accelerator="kvm", processor=None)
    state.hear(B, accelerator="kvm", processor=CHIP)
    assert planned(state) == [], "nor where nobody knows what it is"
    state.hear(A, accelerator="kvm", processor=CHIP)
    assert [move.target for move in planned(state)] == [B]
    for server in (A, B, C):
        state.hear(server, accelerator="tcg", processor=CHIP if server == A else other)
    assert len(planned(state)) == 1, "in emulation all offer the same"


def test_one_that_failed_so_often_waits_for_its_user_to_log_out(state: State) -> None:
    (made,) = used(state, A)
    state.become(A, "draining")
    for _ in range(MOST_FAILURES):
        (move,) = planned(state)
        state.carry_out([move])
        state.do("desktop.move_failed", desktop=made, generation=1, server=A, cause="it writes too fast")
    assert planned(state) == []
    assert [d.state for d in state.view().desktops] == ["in_use"]


def test_what_an_administrator_edits_stays_until_that_is_done(state: State) -> None:
    (made,) = used(state, A)
    state.db.table("desktops").update(made, {"purpose": "edit"})
    state.become(A, "draining")
    assert planned(state) == []


def test_a_desktop_that_is_being_started_from_its_safe_copy_is_not_asked_to_move_again_and_again(
    state: State,
) -> None:
    (own,) = used(state, A)
    state.db.execute("update desktops set kind = 'personal'")
    state.do("copy.assign", desktop=own, generation=1, server=B)
    state.do("copy.points", server=A, points=[{"desktop": own, "generation": 1, "server": B, "as_of": 5, "bytes": 1}])
    state.become(B, "draining")
    state.db.execute("update copies set state = 'starting'")
    state.db.execute("update desktops set server = ?, generation = 2", [B])
    assert planned(state) == []
    state.db.execute("delete from copies")
    assert [(move.desktop.id, move.why) for move in planned(state)] == [(own, Why.DRAINING)]


def test_nothing_moves_from_a_lost_server_nor_while_calm_is_kept(state: State) -> None:
    used(state, A)
    state.become(A, "draining")
    assert not any(isinstance(action, Relocate) for action in plan(state.view(), calm=True).actions)
    state.become(A, "lost")
    assert planned(state) == []


def test_a_server_that_returns_empty_is_given_used_desktops_until_it_is_even_enough(state: State) -> None:
    for server in (A, B, C):
        state.hear(server, memory_mib=16_384, memory_free_mib=16_000)
    used(state, A, 10)
    used(state, B, 10)
    for _ in range(40):
        moves = planned(state)
        if not moves:
            break
        assert {move.why for move in moves} == {Why.BALANCE}
        assert {move.target for move in moves} == {C}
        state.carry_out(moves)
        state.make_everything()
    homes = Counter(d.server for d in state.view().desktops)
    assert (max(homes.values()) - min(homes.values())) * 1088 * 100 // 16_384 < MUCH_FULLER
    assert homes[C] >= 5


def test_a_small_difference_moves_nobody(state: State) -> None:
    for server in (A, B, C):
        state.hear(server, memory_mib=16_384, memory_free_mib=16_000)
    used(state, A, 3)
    assert planned(state) == []


def test_nobody_moves_for_balance_while_anything_else_happens(state: State) -> None:
    for server in (A, B, C):
        state.hear(server, memory_mib=16_384, memory_free_mib=16_000)
    used(state, A, 10)
    assert planned(state)
    state.desktop("tpl-win", B, "building")
    assert planned(state) == []


def test_nobody_moves_unasked_to_a_processor_that_is_not_known(state: State) -> None:
    for server in (A, B, C):
        state.hear(server, memory_mib=16_384, memory_free_mib=16_000, accelerator="kvm")
    used(state, A, 10)
    assert planned(state) == []
    for server in (A, B, C):
        state.hear(server, memory_mib=16_384, memory_free_mib=16_000, accelerator="kvm", processor=CHIP)
    assert planned(state)


def test_for_balance_a_personal_desktop_stays_until_its_safe_copy_is_whole(state: State) -> None:
    for server in (A, B, C):
        state.hear(server, memory_mib=16_384, memory_free_mib=16_000)
    own = used(state, A, 10)
    state.db.execute("update desktops set kind = 'personal'")
    for desktop in own:
        state.do("copy.assign", desktop=desktop, generation=1, server=B)
    assert planned(state) == []
    point = {"desktop": own[0], "generation": 1, "server": B, "as_of": 5, "bytes": 1}
    state.do("copy.points", server=A, points=[point])
    assert [(move.desktop.id, move.why) for move in planned(state)] == [(own[0], Why.BALANCE)]
    # A server that is to be empty is another matter: what it leaves there is kept until the next copy.
    state.become(A, "draining")
    assert {move.why for move in planned(state)} == {Why.DRAINING}
    assert len(planned(state)) == EACH_AT_ONCE


def test_one_goes_only_where_its_own_machine_can_be_made_whatever_its_template_asks_for_now(state: State) -> None:
    first, second = used(state, A), used(state, A)
    state.db.execute("update desktops set outfit = ? where id = ?", [outfit(UEFI), first[0]])
    state.become(A, "draining")
    state.hear(B, memory_free_mib=30_000, extra={"machines": ["uefi"]})
    assert {move.desktop.id: move.target for move in planned(state)} == {first[0]: B, second[0]: C}
    state.hear(B, memory_free_mib=30_000)
    assert [move.desktop.id for move in planned(state)] == second
    lacks = "has no UEFI firmware for it (apt-get install ovmf)"
    assert {one.why for one in stays(state.view(), A)} == {"", f"no server can take it: b {lacks}; c {lacks}"}


def test_for_balance_a_personal_desktop_stays_while_its_safe_copy_is_known_to_be_bad(state: State) -> None:
    for server in (A, B, C):
        state.hear(server, memory_mib=16_384, memory_free_mib=16_000)
    own = used(state, A, 10)
    state.db.execute("update desktops set kind = 'personal'")
    for desktop in own:
        state.do("copy.assign", desktop=desktop, generation=1, server=B)
        point = {"desktop": desktop, "generation": 1, "server": B, "as_of": 5, "bytes": 1}
        state.do("copy.points", server=A, points=[point])
    state.hear(B, memory_mib=16_384, memory_free_mib=16_000, extra={"bad_copies": own})
    assert planned(state) == []
    state.hear(B, memory_mib=16_384, memory_free_mib=16_000, extra={"bad_copies": own[1:]})
    assert [move.desktop.id for move in planned(state)] == own[:1]
