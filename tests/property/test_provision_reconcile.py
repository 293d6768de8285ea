"""Whatever is wanted and found, rounds of `reconcile` lead there, cut off anywhere; and never to a loss."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from kmgr.ids import DesktopId, ServerId, TemplateId, VersionId
from kmgr.provision.hypervisor import DomainState as D
from kmgr.provision.hypervisor import DomainStatus
from kmgr.provision.lifecycle import Event, after
from kmgr.provision.model import Desktop
from kmgr.provision.model import DesktopState as S
from kmgr.provision.reconcile import (
    MOST_POWER_OFFS,
    Action,
    BootAgain,
    Build,
    Fail,
    Quiet,
    Remove,
    RemoveStray,
    Restart,
    Wake,
    reconcile,
)

IDS = [DesktopId(f"d-{n}") for n in range(5)]
VERSIONS = [VersionId("v-1"), VersionId("v-2")]


def record(id: DesktopId, state: S, generation: int = 2, version: VersionId = VERSIONS[0]) -> Desktop:
    return Desktop(
        id, id, TemplateId("t"), version, ServerId("s"), state, generation, 1, 64, None, None, "", "", 1, 1, None
    )


@dataclass
class World:
    """A server as it would be: records, domains, and actions that really change both."""

    records: dict[DesktopId, Desktop]
    domains: dict[DesktopId, DomainStatus]
    removed: list[DesktopId] = field(default_factory=list)

    def actions(self, room: int = 2, absent: Sequence[VersionId] = ()) -> list[Action]:
        return list(reconcile(tuple(self.records.values()), tuple(self.domains.values()), room=room, absent=absent))

    def do(self, action: Action, *, whole: bool = True) -> None:
        match action:
            case Remove(desktop, _, retired):
                self.drop(desktop)
                if retired is not None and whole:
                    self.records.pop(desktop, None)
            case RemoveStray(desktop):
                self.drop(desktop)
            case Build(desktop):
                self.domains[desktop.id] = DomainStatus(desktop.id, desktop.generation, D.RUNNING if whole else D.OFF)
                if whole:
                    self.report(desktop, Event.STARTED)
                    self.report(desktop, Event.ANSWERED)
            case Restart(desktop) | Wake(desktop):
                if whole:
                    self.domains[desktop.id] = replace(self.domains[desktop.id], state=D.RUNNING)
            case BootAgain(desktop) if whole:
                self.report(desktop, Event.STARTED)
            case Quiet(desktop):
                self.domains[desktop.id] = replace(self.domains[desktop.id], state=D.PAUSED)
            case Fail(desktop) if whole:
                self.report(desktop, Event.FAILED)

    def drop(self, desktop: DesktopId) -> None:
        if self.domains.pop(desktop, None) is not None:
            self.removed.append(desktop)

    def report(self, desktop: Desktop, event: Event) -> None:
        found = self.records[desktop.id]
        self.records[desktop.id] = replace(found, state=after(found.state, event))


records = st.dictionaries(
    st.sampled_from(IDS), st.tuples(st.sampled_from(S), st.integers(1, 3), st.sampled_from(VERSIONS)), max_size=5
)
domains = st.dictionaries(st.sampled_from(IDS), st.tuples(st.integers(1, 3), st.sampled_from(D)), max_size=5)


def world(records: dict[DesktopId, tuple[S, int, VersionId]], domains: dict[DesktopId, tuple[int, D]]) -> World:
    return World(
        {key: record(key, *rest) for key, rest in records.items()},
        {key: DomainStatus(key, *rest) for key, rest in domains.items()},
    )


def behind(found: World) -> set[DesktopId]:
    """Desktops of which the hypervisor has a newer generation than the state: nothing is done to them."""
    return {
        key for key, domain in found.domains.items()
        if key in found.records and found.records[key].generation < domain.generation
        and found.records[key].state is not S.RETIRED
    }  # fmt: skip


@given(records=records, domains=domains, cuts=st.lists(st.integers(0, 4), max_size=6))
@settings(max_examples=300, deadline=None)
def test_converges_when_interrupted_anywhere(
    records: dict[DesktopId, tuple[S, int, VersionId]], domains: dict[DesktopId, tuple[int, D]], cuts: list[int]
) -> None:
    found = world(records, domains)
    left_alone = behind(found)
    for cut in [*cuts, *[99] * 12]:
        for number, action in enumerate(found.actions()):
            found.do(action, whole=number < cut)
            if number >= cut:
                break
    assert found.actions() == []
    for key, desktop in found.records.items():
        if key not in left_alone:
            assert desktop.state in (S.READY, S.IN_USE, S.BROKEN)
            if desktop.state is not S.BROKEN:
                assert found.domains[key] == DomainStatus(key, desktop.generation, D.RUNNING)
    assert set(found.domains) <= set(found.records)


@given(records=records, domains=domains)
@settings(max_examples=300, deadline=None)
def test_the_domain_of_a_desktop_in_use_is_never_removed(
    records: dict[DesktopId, tuple[S, int, VersionId]], domains: dict[DesktopId, tuple[int, D]]
) -> None:
    found = world(records, domains)
    for action in found.actions():
        if isinstance(action, Remove | RemoveStray) and action.desktop in found.records:
            mine, there = found.records[action.desktop], found.domains.get(action.desktop)
            assert mine.state is S.RETIRED or (there is not None and there.generation < mine.generation)


@given(records=records, domains=domains, room=st.integers(0, 3), busy=st.sets(st.sampled_from(IDS)))
@settings(max_examples=300, deadline=None)
def test_busy_desktops_are_left_alone_and_room_is_kept(
    records: dict[DesktopId, tuple[S, int, VersionId]],
    domains: dict[DesktopId, tuple[int, D]],
    room: int,
    busy: set[DesktopId],
) -> None:
    found = world(records, domains)
    wanted, observed = tuple(found.records.values()), tuple(found.domains.values())
    actions = list(reconcile(wanted, observed, busy=busy, room=room, absent=[VERSIONS[1]]))
    again = list(reconcile(wanted[::-1], observed[::-1], busy=busy, room=room, absent=[VERSIONS[1]]))
    assert actions == again, "the order of what was found must not matter"
    subjects = [a.desktop if isinstance(a, Remove | RemoveStray) else a.desktop.id for a in actions]
    assert len(subjects) == len(set(subjects)), "one thing at a time for each desktop"
    assert not busy & set(subjects)
    builds = [a.desktop for a in actions if isinstance(a, Build)]
    assert len(builds) <= room
    assert all(desktop.version == VERSIONS[0] for desktop in builds)


def test_removals_come_first() -> None:
    found = world({IDS[0]: (S.PLACED, 1, VERSIONS[0]), IDS[4]: (S.RETIRED, 1, VERSIONS[0])}, {IDS[4]: (1, D.RUNNING)})
    assert [type(action) for action in found.actions()] == [Remove, Build]


def test_a_desktop_that_waits_for_its_image_does_not_keep_others_from_being_built() -> None:
    found = world({IDS[0]: (S.PLACED, 1, VERSIONS[1]), IDS[1]: (S.PLACED, 1, VERSIONS[0])}, {})
    assert [a.desktop.id for a in found.actions(room=1, absent=[VERSIONS[1]]) if isinstance(a, Build)] == [IDS[1]]


def test_a_desktop_that_goes_off_again_and_again_is_failed_and_a_paused_one_never() -> None:
    wanted = [record(IDS[0], S.IN_USE)]
    for state, n, expected in [
        (D.OFF, MOST_POWER_OFFS - 1, Restart),
        (D.OFF, MOST_POWER_OFFS, Fail),
        (D.PAUSED, MOST_POWER_OFFS, Wake),
    ]:
        observed = [DomainStatus(IDS[0], 2, state)]
        (action,) = reconcile(wanted, observed, power_offs={IDS[0]: n})
        assert isinstance(action, expected)
        if isinstance(action, Fail):
            assert action.cause == "it went off by itself 3 times within 5 minutes"
