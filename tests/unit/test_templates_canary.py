"""A canary: how many, what it leaves to the others, when it passes and what stops it."""

import pytest

from kmgr.ids import ImageId, TemplateId, VersionId
from kmgr.templates.canary import Pass, Stop, judge, shares, size_of, tolerated
from kmgr.templates.model import Refresh, Template
from kmgr.templates.versions import Canary


def template(*, standby: int = 4, maximum: int = 10) -> Template:
    return Template(
        id=TemplateId("tpl"), name="office", notes="", image=ImageId("img"), version=VersionId("ver-1"), vcpus=1,
        memory_mib=64, standby=standby, maximum=maximum, refresh=Refresh.ON_LOGOUT, enabled=True, broken_cause="",
        created_at=0, changed_at=0,
    )  # fmt: skip


def canary(size: int = 2, *, failed: int = 0) -> Canary:
    return Canary(
        TemplateId("tpl"), VersionId("ver-2"), size, 60, 300, 1, "root", failed,
        "guest" if failed else "", "it did not answer" if failed else "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "percent", "size"), [(2, 0, 2), (0, 50, 2), (0, 1, 1), (0, 100, 4), (30, 0, 9), (0, 0, 1)]
)
def test_a_canary_is_a_count_or_a_part_of_the_standbys_and_leaves_one_of_the_old(
    count: int, percent: int, size: int
) -> None:
    assert size_of(template(), count=count, percent=percent) == size


def test_the_present_version_keeps_its_standbys_where_the_maximum_allows_it() -> None:
    present, trial = shares(template(standby=4, maximum=10), canary(2), used=0)
    assert (present.version, present.standby, present.maximum) == ("ver-1", 4, 8)
    assert (trial.version, trial.standby, trial.maximum) == ("ver-2", 2, 2)


def test_a_full_template_gives_up_as_many_standbys_as_the_canary_needs_but_never_the_last() -> None:
    present, trial = shares(template(standby=4, maximum=4), canary(2), used=0)
    assert (present.standby, present.maximum, trial.maximum) == (2, 2, 2)
    present, trial = shares(template(standby=1, maximum=1), canary(2), used=0)
    assert (present.standby, present.maximum, trial.standby) == (1, 1, 0)


def test_what_failed_or_has_a_user_is_not_made_again() -> None:
    assert shares(template(), canary(3, failed=1), used=1)[1].standby == 1
    assert shares(template(), canary(3, failed=3), used=0)[1].standby == 0


@pytest.mark.parametrize(("size", "may_fail"), [(1, 0), (3, 0), (4, 1), (9, 2)])
def test_one_in_four_may_fail_but_none_of_a_few(size: int, may_fail: int) -> None:
    assert tolerated(size) == may_fail
    failed = canary(size, failed=may_fail)
    assert judge(failed, [60.0] * (size - may_fail), made=size, waited_s=70) == Pass()
    assert isinstance(judge(canary(size, failed=may_fail + 1), [60.0] * size, made=size, waited_s=70), Stop)


def test_it_passes_when_all_have_been_ready_long_enough() -> None:
    assert judge(canary(2), [], made=0, waited_s=1) is None
    assert judge(canary(2), [61.0], made=2, waited_s=70) is None
    assert judge(canary(2), [61.0, 59.0], made=2, waited_s=70) is None
    assert judge(canary(2), [61.0, 60.0], made=2, waited_s=70) == Pass()


def test_a_failure_stops_it_and_is_named() -> None:
    assert judge(canary(2, failed=1), [99.0], made=2, waited_s=99) == Stop(
        "guest", "1 of 2 desktops failed: it did not answer"
    )


def test_it_does_not_wait_for_ever_and_says_for_what_it_waited() -> None:
    assert judge(canary(2), [], made=0, waited_s=360) is None
    none = judge(canary(2), [], made=0, waited_s=361)
    assert none == Stop("placing", "no server could make a desktop of it within 300 s: is there room?")
    some = judge(canary(2), [10.0], made=2, waited_s=361)
    assert some == Stop("guest", "only 1 of 2 desktops stayed ready, 300 s after the canary began")
