"""Ids: their form, and that every letter is as likely as every other."""

from collections import Counter

from kmgr.entropy import new_id

LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"


def test_ids_are_of_one_form_and_never_come_twice() -> None:
    found = {new_id("cmd") for _ in range(5000)}
    assert len(found) == 5000
    assert all(len(one) == 16 and one.startswith("cmd-") for one in found)


def test_every_letter_is_as_likely_as_every_other() -> None:
    count = Counter("".join(new_id("") for _ in range(20_000)).replace("-", ""))
    assert set(count) == set(LETTERS)
    # 7,500 are expected of each, and 430 are five standard deviations.
    assert all(abs(seen - 7500) < 430 for seen in count.values())
