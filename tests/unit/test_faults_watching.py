"""Who watches all hypervisors for two running copies tells a copy that was halted meanwhile from one that runs."""

from collections.abc import Iterator

from tests.faults.watching import Watcher


def seen(*answers: bool) -> "Iterator[bool]":
    return iter(answers)


def watcher(**looks: "Iterator[bool]") -> Watcher:
    def look_of(answers: Iterator[bool]) -> bool:
        return next(answers)

    return Watcher({name: (lambda answers=answers: look_of(answers)) for name, answers in looks.items()})  # type: ignore[misc]


def test_two_that_run_are_noticed() -> None:
    watching = watcher(a=seen(True, True), b=seen(True, True), c=seen(False))
    watching.look()
    assert watching.twice == [("a", "b")]
    assert watching.alone == 0


def test_one_that_was_halted_between_two_looks_is_none() -> None:
    watching = watcher(a=seen(True, False, False), b=seen(True, True, True), c=seen(False, False))
    watching.look()
    watching.look()
    assert watching.twice == []
    assert (watching.alone, watching.times) == (2, 2)


def test_it_looks_until_it_is_told_to_stop() -> None:
    watching = Watcher({"a": lambda: False})
    watching.start()
    watching.ended.set()
    watching.join(10)
    assert not watching.is_alive()
