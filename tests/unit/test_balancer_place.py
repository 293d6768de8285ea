"""Which server a new desktop gets."""

from collections import Counter

import pytest

from kmgr.balancer.model import Place
from kmgr.balancer.place import COMING_PER_CPU, GROWTH_MIB, OVERHEAD_MIB
from kmgr.balancer.plan import KEPT, plan
from kmgr.ids import ServerId, TemplateId
from kmgr.templates.policy import policy_of, to_json
from tests.lab.state import State

A, B, C = (ServerId(f"srv-{letter}") for letter in "abc")


@pytest.fixture
def state() -> State:
    state = State()
    for name in "abc":
        state.server(name)
    state.version("ver-1", [A, B, C])
    return state


def placed(state: State) -> Counter[str]:
    return Counter(action.server[4:] for action in plan(state.view()).actions if isinstance(action, Place))


def test_standbys_are_spread_so_that_one_loss_takes_few(state: State) -> None:
    state.template("win", standby=6)
    assert placed(state) == {"a": 2, "b": 2, "c": 2}


def test_standbys_of_each_template_are_spread_apart(state: State) -> None:
    state.template("win", standby=1)
    state.desktop("tpl-win", A)
    state.template("kde", standby=3)
    assert placed(state) == {"a": 1, "b": 1, "c": 1}


def test_the_neediest_template_comes_first_where_room_is_short(state: State) -> None:
    for server in (A, B, C):
        state.hear(server, cpus=1)
    state.template("kde", standby=10)
    state.template("win", standby=2)
    actions = [a.template for a in plan(state.view()).actions if isinstance(a, Place)]
    assert len(actions) == 3 * COMING_PER_CPU
    assert actions[:2] == ["tpl-kde", "tpl-win"]
    assert Counter(actions)[TemplateId("tpl-win")] >= 1


def test_boots_at_once_are_bounded_per_server(state: State) -> None:
    state.template("win", standby=100, maximum=100, memory_mib=64)
    state.hear(A, cpus=2)
    assert placed(state) == {"a": 4, "b": 16, "c": 16}


def test_a_server_that_makes_few_at_once_is_given_few(state: State) -> None:
    state.template("win", standby=100, maximum=100, memory_mib=64)
    state.hear(A, cpus=2, extra={"builds": {"limit": 1, "most": 4, "why": "its disks were busy"}})
    state.hear(B, cpus=2, extra={"builds": {"limit": 4}})
    state.hear(C, cpus=2, extra={"builds": "nonsense"})
    assert placed(state) == {"a": 2, "b": 8, "c": 4}


def test_memory_promised_to_others_is_not_given_again(state: State) -> None:
    reserve, each = 500, 1024 + OVERHEAD_MIB
    state.template("win", standby=9)
    for server in (B, C):
        state.hear(server, can_run_desktops=False)
    state.hear(A, memory_mib=8000, memory_free_mib=8000)
    assert placed(state) == {"a": (8000 - reserve) // each}
    state.desktop("tpl-win", A, "retired")
    assert placed(state) == {"a": (8000 - reserve - each) // each}


def test_memory_of_desktops_that_still_start_is_taken_off_what_is_free_now(state: State) -> None:
    state.template("win", standby=5)
    for server in (B, C):
        state.hear(server, can_run_desktops=False)
    state.hear(A, memory_free_mib=2048 + 2 * (1024 + OVERHEAD_MIB))
    state.desktop("tpl-win", A, "building")
    assert placed(state) == {"a": 1}


def test_disk_keeps_a_reserve(state: State) -> None:
    state.template("win", standby=5)
    state.hear(A, disk_mib=100_000, disk_free_mib=2000 + 2 * GROWTH_MIB)
    state.hear(B, disk_mib=100_000, disk_free_mib=2000)
    state.hear(C, disk_mib=100_000, disk_free_mib=0)
    assert placed(state) == {"a": 2}


def test_only_servers_that_have_the_golden_image_are_chosen_while_they_can(state: State) -> None:
    state.version("ver-2", [B])
    state.template("win", "ver-2", standby=3)
    assert placed(state) == {"b": 3}
    state.hear(B, cpus=1)
    assert placed(state) == {"b": 2}


def test_a_server_that_waits_for_the_image_is_chosen_if_no_holder_has_room(state: State) -> None:
    state.version("ver-2", [B])
    state.template("win", "ver-2", standby=2)
    state.hear(B, memory_free_mib=0)
    assert placed(state) == {"a": 1, "c": 1}


def test_nothing_is_placed_while_no_running_server_has_the_image(state: State) -> None:
    state.version("ver-2", [B])
    state.template("win", "ver-2", standby=2)
    state.become(B, "lost")
    assert placed(state) == {}


def test_a_template_that_needs_uefi_or_a_tpm_goes_where_they_are_and_says_where_they_are_not(state: State) -> None:
    machine = {"firmware": "secure", "tpm": True, "hardware": "plain"}
    state.template("win", standby=3, policy=to_json(policy_of({"machine": machine})))
    state.hear(B, extra={"machines": ["secure", "uefi"]})
    state.hear(C, extra={"machines": ["secure", "tpm", "uefi"]})
    assert placed(state) == {"c": 3}
    state.hear(C, can_run_desktops=False, extra={"machines": ["secure", "tpm", "uefi"]})
    (short,) = plan(state.view()).short
    assert "a has no UEFI firmware for it (apt-get install ovmf)" in short.reason
    assert "b has no TPM emulator for it (apt-get install swtpm swtpm-tools)" in short.reason


def small(state: State, *servers: ServerId) -> None:
    for server in servers:
        state.hear(server, memory_mib=8_192, memory_free_mib=7_500)


def test_what_stands_by_stops_where_a_loss_would_need_the_memory_and_who_asks_passes(state: State) -> None:
    small(state, A, B, C)
    state.template("win", standby=30, maximum=60)
    # Of 3 × 6 desktops of 1 GiB that fit a third is kept.
    assert placed(state) == {"a": 4, "b": 4, "c": 4}
    state.carry_out(plan(state.view()).actions)
    (short,) = plan(state.view()).short
    assert (short.missing, short.reason) == (18, KEPT)
    for number in range(15):
        state.do("desktop.ask", user=f"u{number}", template="tpl-win")
    assert sum(placed(state).values()) == 15 - 12, "twelve of them are given what is on its way"


def test_it_may_be_said_that_nothing_is_kept(state: State) -> None:
    small(state, A, B, C)
    state.template("win", standby=30, maximum=60)
    state.do("setting.set", name="keep_for_loss", value=0)
    assert placed(state) == {"a": 6, "b": 6, "c": 6}


def test_during_a_loss_and_on_one_server_nothing_is_kept(state: State) -> None:
    small(state, A, B, C)
    state.template("win", standby=30, maximum=60)
    state.become(C, "lost")
    assert placed(state) == {"a": 6, "b": 6}
    state.become(B, "removed")
    state.become(C, "removed")
    assert placed(state) == {"a": 6}
