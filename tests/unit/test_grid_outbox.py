"""The outbox: what was added is there after a kill, in order, and no number is ever used twice."""

from pathlib import Path

import pytest

from kmgr.errors import ConfigError
from kmgr.grid.envelope import Applied, Command
from kmgr.grid.outbox import Outbox
from kmgr.grid.settle import Fact, Record
from kmgr.ids import CommandId


def fact(number: int, about: str = "") -> Fact:
    record = Record(about, {"number": number}) if about else None
    command = Command("t", CommandId(f"cmd-{number}"), number, "anna", {"x": number})
    return Fact(command, Applied({"made": number}), (("k", "s", "é"),), record)


def opened(folder: Path, id: str = "out-1") -> Outbox:
    return Outbox(folder / "outbox", new_id=id)


def test_facts_come_back_as_they_were_also_without_a_proper_end(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.begin(77)
    for number in (1, 2, 3):
        first.add(fact(number, f"thing-{number}"))
    # Not closed: another process opens the file after a kill.
    again = opened(tmp_path, "another")
    assert (again.id, again.since, again.total) == ("out-1", 77, 3)
    assert [(f.n, f.command.id, f.lines, f.record) for f in again.facts()] == [
        (n, f"cmd-{n}", (("k", "s", "é"),), Record(f"thing-{n}", {"number": n})) for n in (1, 2, 3)
    ]
    first.close()
    again.close()


def test_only_the_last_record_about_a_thing_counts(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number, about in ((1, "a"), (2, "b"), (3, "a"), (4, ""), (5, "")):
        outbox.add(fact(number, about))
    assert [f.record.values["number"] if f.record else None for f in outbox.facts()] == [None, 2, 3, None, None]
    # Also of a part, and of what is left.
    assert [f.record for f in outbox.facts(most=1)] == [None]
    outbox.drop(1)
    assert [f.n for f in outbox.facts(most=2)] == [2, 3]
    outbox.close()


def test_a_part_is_as_large_as_it_may_be_but_never_empty(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number in range(5):
        outbox.add(fact(number))
    assert len(outbox.facts(most_bytes=1)) == 1
    assert 1 < len(outbox.facts(most_bytes=400)) < 5
    assert len(outbox.facts(most_bytes=10_000)) == 5
    outbox.close()


def test_numbers_go_on_after_everything_was_settled(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.begin(1)
    outbox.add(fact(1))
    outbox.begin(99)
    assert (outbox.since, outbox.total) == (1, 1)
    outbox.drop(1)
    assert outbox.total == 1
    outbox.end()
    assert (outbox.since, outbox.facts()) == (None, ())
    outbox.begin(2)
    outbox.add(fact(2))
    assert (outbox.total, [f.n for f in outbox.facts()]) == (1, [2])
    outbox.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "outbox").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        opened(tmp_path)


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigError, match=r"damaged .* Put it aside"):
        opened(tmp_path)
