"""The fault lab's checker, on histories whose verdict is known."""

import itertools
import random
from pathlib import Path

import pytest

from tests.faults import history
from tests.faults.checker import LATE_S, End, Verdict, judge, linearizable, thin, unexplained
from tests.faults.history import Held, History, Kind, Operation, Result


def put(id: str, called: float, returned: float, result: Result = Result.DONE, key: str = "k") -> Operation:
    return Operation("c", Kind.PUT, key, called, returned, result, id=id)


def swap(id: str, expected: str | None, called: float, returned: float, result: Result = Result.DONE) -> Operation:
    return Operation("c", Kind.SWAP, "k", called, returned, result, id=id, expected=expected)


def read(seen: str | None, called: float, returned: float) -> Operation:
    return Operation("c", Kind.READ, "k", called, returned, Result.DONE, seen=seen)


def peek(position: int, called: float, *, at: str = "srv-a/1") -> Operation:
    return Operation("c", Kind.PEEK, "k", called, called + 0.1, Result.DONE, seen="x", position=position, at=at)


def held(*ids: str) -> list[Held]:
    return [Held(one, "k") for one in ids]


GOOD = {
    "one after the other": [put("a", 0, 1), read("a", 2, 3), put("b", 4, 5), read("b", 6, 7)],
    "a read beside a write sees the old": [put("a", 0, 1), put("b", 2, 5), read("a", 3, 4)],
    "a read beside a write sees the new": [put("a", 0, 1), put("b", 2, 5), read("b", 3, 4)],
    "nothing was written yet": [read(None, 0, 1)],
    "parallel writes in the other order": [put("a", 0, 5), put("b", 1, 4), read("a", 6, 7)],
    "a swap that found its value": [put("a", 0, 1), swap("b", "a", 2, 3), read("b", 4, 5)],
    "a swap that did not": [put("a", 0, 1), swap("b", "z", 2, 3, Result.REJECTED), read("a", 4, 5)],
    "an unknown write happens much later": [
        put("a", 0, 1, Result.UNKNOWN), read(None, 2, 3), put("b", 4, 5), read("b", 6, 7), read("a", 8, 9),
    ],
}  # fmt: skip

BAD = {
    "a stale read": [put("a", 0, 1), put("b", 2, 3), read("a", 4, 5)],
    "a read goes back": [put("a", 0, 1), put("b", 2, 9), read("b", 3, 4), read("a", 5, 6)],
    "a value from nowhere": [put("a", 0, 1), read("b", 2, 3)],
    "nothing, after something": [put("a", 0, 1), read(None, 2, 3)],
    "two swaps of the same value": [put("a", 0, 1), swap("b", "a", 2, 5), swap("c", "a", 3, 6)],
    "a swap rejected without a reason": [put("a", 0, 1), swap("b", "a", 2, 3, Result.REJECTED)],
    "two readers disagree on the order": [
        put("a", 0, 9), put("b", 0, 9), read("a", 1, 2), read("b", 3, 4), read("a", 5, 6),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_one_register_could_have_done_is_accepted(name: str) -> None:
    assert linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_no_register_does_is_found(name: str) -> None:
    assert not linearizable(BAD[name])


@pytest.mark.parametrize("seed", range(60))
def test_the_search_agrees_with_trying_every_order(seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - makes small histories
    ops = []
    for number in range(6):
        called = dice.uniform(0, 6)
        span = called, called + dice.uniform(0.1, 4)
        if dice.random() < 0.5:
            ops.append(put(f"v{number}", *span, dice.choice([Result.DONE, Result.DONE, Result.UNKNOWN])))
        else:
            ops.append(read(dice.choice([None, *(f"v{one}" for one in range(number + 1))]), *span))
    assert linearizable(ops) == any(allowed(order) for order in itertools.permutations(ops))


def allowed(order: tuple[Operation, ...]) -> bool:
    value: str | None = None
    for place, op in enumerate(order):
        if any(other.result is not Result.UNKNOWN and other.returned < op.called for other in order[place + 1 :]):
            return False
        if op.kind is Kind.READ and op.seen != value:
            return False
        value = op.id if op.kind is Kind.PUT else value
    return True


def test_a_good_history_has_no_violations() -> None:
    ops = [put("a", 0, 1), read("a", 2, 3), peek(1, 4), peek(1, 5), put("b", 6, 7, Result.REFUSED)]
    assert judge(ops, held("a")).violations == []


@pytest.mark.parametrize(
    ("ops", "state", "word"),
    [
        ([put("a", 0, 1)], [], "lost"),
        ([put("a", 0, 1)], ["a", "a"], "made twice"),
        ([put("a", 0, 1, Result.UNKNOWN)], ["a", "a"], "made twice"),
        ([put("a", 0, 1, Result.REFUSED)], ["a"], "refused, yet there"),
        ([], ["a"], "nobody asked"),
        ([put("a", 0, 1), peek(5, 2), peek(4, 3)], ["a"], "went back"),
        ([put("a", 0, 1), put("b", 2, 3), read("a", 4, 5)], ["a", "b"], "not linearizable"),
    ],
)
def test_each_kind_of_violation_is_named(ops: list[Operation], state: list[str], word: str) -> None:
    found = judge(ops, held(*state)).violations
    assert any(word in one for one in found), found


def test_an_unknown_write_that_is_not_there_never_happened() -> None:
    ops = [put("a", 0, 1), put("b", 2, 3, Result.UNKNOWN), read("a", 4, 5)]
    assert judge(ops, held("a")).violations == []
    assert judge([*ops, read("b", 6, 7)], held("a")).violations != []


def test_another_life_of_a_server_may_begin_further_back() -> None:
    assert judge([peek(5, 2), peek(4, 3, at="srv-a/2")], []).violations == []


def test_a_long_history_with_many_unknown_writes_is_judged_quickly() -> None:
    ops: list[Operation] = []
    for number in range(150):
        at = float(number)
        ops.append(put(f"v{number}", at, at + 2.5, Result.UNKNOWN if number % 10 == 0 else Result.DONE))
    assert linearizable(ops)


def test_a_search_that_takes_too_long_is_given_up_without_a_verdict() -> None:
    ops = [put(f"v{number}", 0, 1, Result.UNKNOWN) for number in range(40)]
    assert linearizable([*ops, read("nowhere", 2, 3)], most=1000) is None
    state = held(*(op.id for op in ops))
    assert judge([*ops, read("nowhere", 2, 3)], state, most=1000).undecided == ["k"]
    assert judge(ops, state).undecided == []
    assert (judge(ops, state).judged, thin(judge(ops, state))) == (1, [])


def test_a_verdict_over_too_few_keys_is_none() -> None:
    assert thin(Verdict([], [], 0)) == ["too little was judged: 0 of 0 keys"]
    assert thin(Verdict([], ["a"], 9)) == []
    assert thin(Verdict([], ["a", "b"], 9)) == ["too little was judged: 9 of 11 keys"]


def test_a_history_file_gives_back_what_was_recorded(tmp_path: Path) -> None:
    kept = History(tmp_path / "history")
    for op in (*GOOD["a swap that found its value"], peek(3, 9)):
        kept.add(op)
    kept.close()
    assert history.read((tmp_path / "history").read_text().splitlines()) == list(kept)


FULL = "the disk under the log failed: No space left on device. Make room or replace the disk"
WHILE_IT_AILED = [(10.0, 12.0), (30.0, float("inf"))]


@pytest.mark.parametrize(
    ("end", "refusable", "wrong"),
    [
        (End("fatal", FULL, 11.0), False, False),
        (End("fatal", FULL, 12.0 + LATE_S), False, False),
        (End("fatal", "the state database failed: database or disk is full. Make room", 99.0), False, False),
        (End("fatal", "the disk under the log failed: Input/output error. Make room", 31.0), False, False),
        (End("fatal", FULL, 9.0), False, True),
        (End("fatal", FULL, 12.1 + LATE_S), True, True),
        (End("fatal", "the log of this server stopped: list index out of range", 11.0), False, True),
        (End("fatal", "srv-b and this server both lead in term 7", 11.0), True, True),
        (End("refused", "the log is damaged", 11.0), True, False),
        (End("refused", "the log is damaged", 11.0), False, True),
        (End("crashed", "exit status 1", 11.0), True, True),
    ],
)
def test_a_server_ends_by_itself_only_over_a_fault_that_was_made(end: End, refusable: bool, wrong: bool) -> None:
    assert unexplained(end, ailed=WHILE_IT_AILED, refusable=refusable) is wrong
