"""Can one server be lost? The answer, and what it says to do."""

import pytest

from kmgr.balancer.plan import plan
from kmgr.balancer.queries import look, redundancy_now, shortages_now
from kmgr.balancer.redundancy import Drain, Redundancy, Remove, would_break
from kmgr.grid.envelope import Applied
from kmgr.grid.model import DOUBTED
from kmgr.ids import ServerId
from kmgr.provision.outfit import outfit
from kmgr.templates.machine import MACHINES, System
from kmgr.templates.policy import Policy, to_json
from tests.lab.state import State

PLACE = {"desktop": "dsk-by-hand", "template": "tpl-win", "version": "ver-1"}
A, B, C = (ServerId(f"srv-{letter}") for letter in "abc")
WINDOWS = Policy(machine=MACHINES[System.WINDOWS])


@pytest.fixture
def state() -> State:
    state = State()
    for name in "abc":
        state.server(name)
    state.version("ver-1", [A, B, C])
    state.template("win")
    state.desktop("tpl-win", A, "in_use")
    state.desktop("tpl-win", B)
    return state


def verdict(state: State, *voters: ServerId) -> Redundancy:
    return redundancy_now(state.db, state.vitals, voters or (A, B, C), 0.0)


def test_three_servers_with_room_and_copies_can_lose_one(state: State) -> None:
    found = verdict(state)
    assert found.ok
    assert found.sentences[0].startswith("Any one of a, b or c may be lost")


def test_two_voters_cannot_lose_one(state: State) -> None:
    found = verdict(state, A, B)
    assert not found.ok
    assert " ".join(found.sentences) == (
        "Only 2 servers vote (a, b): if one is lost, nothing can be changed until it is back. "
        "Let servers join until there are 3, or add a witness."
    )


def test_with_one_of_three_lost_the_next_loss_would_stop_changes(state: State) -> None:
    state.become(C, "lost")
    found = verdict(state)
    assert not found.ok
    assert "Of 3 voting servers 2 are up, without c" in found.sentences[0]
    assert "Bring c back" in found.sentences[0]


def test_a_voter_in_doubt_does_not_count(state: State) -> None:
    state.hear(C, extra={DOUBTED: True})
    found = verdict(state)
    assert not found.ok
    assert " ".join(found.sentences) == (
        "Of 3 voting servers 2 are up and count, without c: one more loss and nothing can be changed. "
        "c: the data there is older than it was, see what it says about it."
    )
    state.become(B, "lost")
    assert "without b, c" in verdict(state).sentences[0]
    assert "Bring b back" in verdict(state).sentences[0]
    state.hear(C, extra={DOUBTED: False})
    state.become(B, "up")
    assert verdict(state).ok


def test_five_voters_can_lose_a_second_one(state: State) -> None:
    for name in "de":
        state.server(name)
    state.become(ServerId("srv-e"), "lost")
    assert verdict(state, A, B, C, ServerId("srv-d"), ServerId("srv-e")).ok


def test_a_golden_image_on_one_server_only_is_named(state: State) -> None:
    state.version("ver-2", [B])
    state.template("kde", "ver-2")
    found = verdict(state)
    assert " ".join(found.sentences) == (
        "The golden image of template kde is only on b. The other servers copy it by themselves: see their problems "
        "if that does not move."
    )


def test_a_golden_image_of_which_every_copy_is_damaged_may_not_be_lost_with_any_server(state: State) -> None:
    state.do("image.create", image="img-1", name="Debian", notes="")
    damage = {"version": "ver-1", "file": "x", "offset": 0, "blocks": 1}
    state.do("version.damaged", server=A, **damage)
    assert verdict(state).ok
    state.do("version.damaged", server=B, **damage)
    assert "The golden image of template win is only on c." in " ".join(verdict(state).sentences)
    state.do("version.damaged", server=C, **damage)
    found = verdict(state)
    assert not found.ok
    told = (
        "The golden image of template win is damaged on a, b, c and whole on no server that is up: desktops of it "
        "may not work. Import it anew and publish that, and look after the disks: smartctl and dmesg tell more."
    )
    assert " ".join(found.sentences) == told
    # One that is whole on a lost server alone helps nobody now.
    state.do("version.damaged", server=C, **{**damage, "blocks": 0})
    state.become(C, "lost")
    assert told.replace("a, b, c", "a, b") in verdict(state).sentences
    assert "image of template win would" not in against(state, Remove(A))


def test_a_copy_on_a_lost_server_does_not_count(state: State) -> None:
    state.version("ver-2", [B, C])
    state.template("kde", "ver-2")
    state.become(C, "lost")
    assert any("template kde is only on b" in sentence for sentence in verdict(state).sentences)


def test_one_server_alone_is_told_to_let_others_join() -> None:
    state = State()
    state.server("a")
    state.version("ver-1", [A])
    state.template("win")
    state.desktop("tpl-win", A)
    votes, image, memory = verdict(state, A).sentences
    assert "one server votes (a)" in votes
    assert "Let another server join" in image
    assert "If a is lost, no other server has memory for 1 of its 1 desktops" in memory


def test_memory_must_remain_for_the_desktops_of_any_one_server(state: State) -> None:
    for _ in range(6):
        state.desktop("tpl-win", A, memory_mib=8192)
    assert verdict(state).ok
    for server in (B, C):
        state.hear(server, memory_free_mib=30_000)
    found = verdict(state)
    assert found.ok
    state.hear(C, memory_free_mib=20_000)
    assert " ".join(verdict(state).sentences) == (
        "If a is lost, no other server has memory for 1 of its 7 desktops. Add memory or a server, or lower how "
        "many desktops stand by."
    )


def test_a_shortage_names_each_server_and_its_reason(state: State) -> None:
    state.hear(A, memory_free_mib=100)
    state.hear(B, can_run_desktops=False)
    state.become(C, "draining")
    (short,) = shortages_now(state.db, state.vitals, 0.0)
    assert (short.template, short.missing) == ("tpl-win", 1)
    assert short.reason == (
        "no server can take it: a has too little memory left; b cannot run desktops, see its problems; c is not up"
    )


def test_a_shortage_for_want_of_the_image_says_so(state: State) -> None:
    state.version("ver-2", [])
    state.template("kde", "ver-2")
    (short,) = [s for s in shortages_now(state.db, state.vitals, 0.0) if s.template == "tpl-kde"]
    assert short.reason == "no server that is up has its golden image yet: it starts as soon as one has"


def test_old_heartbeats_count_as_silence(state: State) -> None:
    assert shortages_now(state.db, state.vitals, 2.0) == ()
    short = shortages_now(state.db, state.vitals, 4.0)
    assert "a has not reported for some seconds" in short[0].reason


def against(state: State, action: Drain | Remove, *voters: ServerId) -> str:
    return " ".join(would_break(look(state.db, state.vitals, 0.0), voters or (A, B, C), action))


def test_two_servers_and_a_witness_can_lose_one() -> None:
    state = State()
    a, b, w = state.server("a"), state.server("b"), state.witness("w")
    state.version("ver-1", [a, b])
    state.template("win")
    assert verdict(state, a, b, w).ok
    state.become(w, "lost")
    found = verdict(state, a, b, w)
    assert "Of 3 voting servers 2 are up, without w" in found.sentences[0]


def test_a_witness_is_given_no_desktops_and_asked_for_no_images() -> None:
    state = State()
    state.server("a")
    witness = state.witness("w")
    state.hear(witness)
    state.version("ver-1", [A])
    state.template("win")
    assert shortages_now(state.db, state.vitals, 0.0) == ()
    assert state.carry_out(plan(state.view()).actions)
    assert {desktop.server for desktop in state.view().desktops} == {A}
    assert not isinstance(state.do("desktop.place", **{**PLACE, "server": witness}), Applied)
    assert isinstance(state.do("desktop.place", **{**PLACE, "server": A}), Applied)
    assert any("Let another server join" in sentence for sentence in verdict(state, A).sentences)


def test_what_is_well_before_and_after_needs_no_reasons(state: State) -> None:
    state.server("d")
    state.version("ver-2", [A, B, C, ServerId("srv-d")])
    state.template("kde", "ver-2")
    assert against(state, Drain(C)) == ""
    assert against(state, Remove(C)) == ""


def test_removing_one_of_three_servers_leaves_two_that_need_each_other(state: State) -> None:
    told = against(state, Remove(C))
    assert told.startswith("Afterwards: only 2 servers vote (a, b): if one is lost, nothing can be changed")
    state.witness("w")
    assert against(state, Remove(C)) == ""


def test_removing_a_dead_server_makes_nothing_worse(state: State) -> None:
    state.become(C, "lost")
    assert against(state, Remove(C)) == ""


def test_removing_a_server_while_another_is_lost_would_end_the_majority(state: State) -> None:
    state.become(C, "lost")
    told = against(state, Remove(A))
    assert "Without a no majority is left, for c is not up" in told
    assert "Bring c back first, or remove it first" in told
    assert "People work on one desktop there" in told


def test_removing_a_server_while_another_is_in_doubt_would_end_the_majority(state: State) -> None:
    state.hear(C, extra={DOUBTED: True})
    assert "for c is not up or its vote does not count" in against(state, Remove(A))


def test_removing_the_only_holder_of_an_image_is_told(state: State) -> None:
    state.server("d")
    state.version("ver-2", [ServerId("srv-d")])
    state.template("kde", "ver-2")
    assert against(state, Remove(ServerId("srv-d"))) == (
        "The golden image of template kde is nowhere else: it would be gone. Wait until another server has copied it."
    )
    assert against(state, Drain(ServerId("srv-d"))) == ""


def test_draining_the_last_server_that_is_up_is_told(state: State) -> None:
    for server in (B, C):
        state.become(server, "draining")
    assert "No other server is up: nobody would get a new desktop." in against(state, Drain(A))
    state.become(A, "draining")
    assert against(state, Drain(A)) == ""


def test_draining_needs_room_elsewhere_and_a_reserve_after_it(state: State) -> None:
    for server in (B, C):
        state.hear(server, memory_free_mib=8_000)
    state.desktop("tpl-win", A, memory_mib=4_096)
    assert "only 2" not in against(state, Drain(A))
    told = against(state, Drain(A))
    assert "if b is lost, no other server has memory" in told or "if c is lost" in told, told
    for server in (B, C):
        state.hear(server, memory_free_mib=2_500)
    assert "The other servers have no memory for" in against(state, Drain(A))


def test_unknown_and_removed_servers_have_no_reasons(state: State) -> None:
    assert against(state, Remove(ServerId("srv-x"))) == ""
    state.become(C, "removed")
    assert against(state, Remove(C), A, B) == ""


def personal(state: State, copy_on: ServerId | None) -> None:
    """Give Anna a personal desktop on server a, with a safe copy or without."""
    state.template("own", kind="personal", standby=0)
    made = state.desktop("tpl-own", A, "in_use")
    state.db.execute("update desktops set kind = 'personal', name = 'own-1' where id = ?", [made])
    if copy_on is not None:
        state.do("copy.assign", desktop=made, generation=1, server=copy_on)
        point = {"desktop": made, "generation": 1, "server": copy_on, "as_of": 5, "bytes": 1}
        state.do("copy.points", server=A, points=[point])


def test_a_personal_desktop_without_a_safe_copy_would_stay_away_with_its_server(state: State) -> None:
    personal(state, None)
    found = verdict(state)
    assert not found.ok
    assert "The personal desktop own-1 would stay away with its server" in found.sentences[0]


def test_with_a_safe_copy_it_may_lose_its_server_but_not_both(state: State) -> None:
    personal(state, B)
    assert verdict(state).ok
    assert "own-1" not in against(state, Remove(A))
    assert "The personal desktop own-1 would stay away" in against(state, Remove(B)).replace("the per", "The per")


def test_removing_a_server_with_the_only_disk_of_somebodys_work_is_refused(state: State) -> None:
    personal(state, None)
    state.become(A, "lost")
    assert "own-1 would be lost for good, with all that was saved" in against(state, Remove(A))


def test_a_safe_copy_that_its_server_knows_to_be_bad_saves_nothing(state: State) -> None:
    personal(state, B)
    (own,) = [d.id for d in state.view().desktops if d.personal]
    assert verdict(state).ok
    state.hear(B, extra={"bad_copies": [own]})
    found = verdict(state)
    assert not found.ok
    assert " ".join(found.sentences) == (
        "The personal desktop own-1 would stay away with its server: its safe copy on b went bad. What is wrong is "
        "brought again by itself; look after the disk of b: smartctl and dmesg tell more."
    )
    assert "own-1 would be lost, at least in part: what there is on b is a safe copy that went bad" in against(
        state, Remove(A)
    )
    state.hear(B, extra={"bad_copies": ["dsk-of-another"]})
    assert verdict(state).ok


def test_a_safe_copy_where_its_machine_cannot_be_made_is_told_with_what_is_missing(state: State) -> None:
    personal(state, B)
    state.db.execute("update desktops set outfit = ? where kind = 'personal'", [outfit(WINDOWS)])
    state.hear(B, extra={"machines": ["secure", "uefi"]})
    wanted = (
        "The personal desktop own-1 cannot be started from its safe copy: b has no TPM emulator for it (apt-get "
        "install swtpm swtpm-tools)."
    )
    assert " ".join(verdict(state).sentences) == wanted
    # Also when that has happened, and to no other desktop.
    state.become(A, "lost")
    assert wanted in verdict(state).sentences
    state.hear(B, extra={"machines": ["secure", "tpm", "uefi"]})
    assert not any("own-1" in sentence for sentence in verdict(state).sentences)
    # Nobody knows what a silent server can do.
    state.hear(B)
    assert any("has no UEFI firmware" in sentence for sentence in verdict(state).sentences)
    state.silence(B)
    assert not any("own-1" in sentence for sentence in verdict(state).sentences)


def test_a_kind_of_machine_that_only_one_server_can_make_is_told_with_what_the_others_lack(state: State) -> None:
    state.template("windows", standby=0, policy=to_json(WINDOWS))
    state.hear(A, extra={"machines": ["secure", "tpm", "uefi"]})
    state.hear(B, extra={"machines": ["secure", "uefi"]})
    found = verdict(state)
    assert not found.ok
    assert " ".join(found.sentences) == (
        "Desktops of template windows can be made only on a: b has no TPM emulator for it (apt-get install swtpm "
        "swtpm-tools); c has no UEFI firmware for it (apt-get install ovmf)."
    )
    assert "Afterwards: desktops of template windows can be made nowhere: b has no TPM" in against(state, Remove(A))
    assert "windows" not in against(state, Remove(B))
    state.hear(C, extra={"machines": ["secure", "tpm", "uefi"]})
    assert verdict(state).ok
    assert "desktops of template windows can be made only on a" in against(state, Remove(C))
