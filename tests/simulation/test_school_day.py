"""A slice of the school day: the whole one, with 100 servers and 10,000 desktops, is `make school-day`."""

import pytest

from tests.lab.school_day import SchoolDay, clock


@pytest.fixture(scope="module")
def day() -> SchoolDay:
    day = SchoolDay(servers=8, people=160, personal=16)
    day.run()
    return day


def test_everybody_gets_a_desktop_and_comes_back_after_a_loss(day: SchoolDay) -> None:
    # The rules of every moment were checked while it was played.
    assert len(day.report.waits) >= day.people
    assert len(day.report.back) == sum(sessions for _, _, sessions in day.report.cuts) > 0


def test_a_storm_leaves_the_standbys_spread_so_that_a_loss_takes_no_more_than_its_share(day: SchoolDay) -> None:
    spread = day.report.spread
    # A claim makes a pool uneven until one more is made; in the storm the next claim follows before that.
    assert spread.worst["after it"] <= 1
    assert spread.longest["after it"] <= 60
    assert spread.worst["in the storm"] <= 2


def test_the_publication_reaches_every_standby_by_the_evening(day: SchoolDay) -> None:
    assert day.report.on_former == 0


def test_the_drained_server_is_empty_in_the_evening_and_its_people_were_moved(day: SchoolDay) -> None:
    assert day.report.drained is not None
    assert day.report.drained[0] == clock(17)
    assert day.report.drained[2] > 0
    assert day.report.left_on_drained == 0
    assert day.report.moved > 0


def test_personal_desktops_of_lost_servers_went_on_from_their_copies(day: SchoolDay) -> None:
    assert day.report.taken_over > 0


def test_the_same_seed_plays_the_same_day() -> None:
    told = [SchoolDay(servers=4, people=40, seed=7).run().words() for _ in range(2)]
    assert told[0] == told[1]
