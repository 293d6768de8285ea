"""Figures as people read them."""

import pytest

from kmgr.web import words

NOW = 1_700_000_000_000


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KB"), (4 << 30, "4 GB"), (20 << 30, "20 GB")],
)
def test_sizes(count: int | None, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("seconds_ago", "text"),
    [
        (0, "just now"), (-4, "just now"), (59, "59 s ago"), (60, "1 minute ago"), (7200, "2 hours ago"),
        (86_400 * 40, "40 days ago"), (-900, "in 15 minutes"),
    ],
)  # fmt: skip
def test_ages(seconds_ago: int, text: str) -> None:
    assert words.ago(NOW - seconds_ago * 1000, NOW) == text


def test_stamps_name_their_zone() -> None:
    assert words.stamp(NOW) == "2023-11-14 22:13:20 UTC"
    assert words.iso(NOW) == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("there is no file", "There is no file"), ("letter.txt cannot be imported", "letter.txt cannot be imported"),
        ("lost_after_ms must be larger", "lost_after_ms must be larger"), ("", ""), ("/srv is full", "/srv is full"),
    ],
)  # fmt: skip
def test_messages_become_sentences_but_names_stay(text: str, told: str) -> None:
    assert words.sentence(text) == told


_SETTINGS = ("heartbeat_ms", "login_wait_s", "session_hours", "keep_days", "scrub_mib_s", "login_tries")


def test_a_setting_names_its_unit() -> None:
    assert [words.unit(name) for name in _SETTINGS] == [
        "ms", "s", "hours", "days", "MiB/s", "",
    ]  # fmt: skip


def test_bars_turn_before_it_is_too_late() -> None:
    assert [words.level(percent) for percent in (None, 0, 74, 75, 89, 90, 100)] == [
        "ok", "ok", "ok", "tight", "tight", "full", "full",
    ]  # fmt: skip
    assert words.used_percent(200, 50) == 75
    assert words.used_percent(None, 5) is None
    assert words.used_percent(100, 130) == 0


def test_every_state_has_a_name_and_an_unknown_one_is_readable() -> None:
    assert (words.state_name("in_use"), words.state_colour("in_use")) == ("in use", "blue")
    assert (words.state_name("gone_away"), words.state_colour("gone_away")) == ("gone away", "secondary")


def test_counts_and_sentences() -> None:
    assert [words.plural(n, "desktop") for n in (0, 1, 2)] == ["0 desktops", "1 desktop", "2 desktops"]
    assert words.sentence("there is no template x") == "There is no template x"
    assert words.sentence("") == ""
