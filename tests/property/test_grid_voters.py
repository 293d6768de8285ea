"""The voters change in steps that never endanger the grid, whoever is gone and wherever the steps are cut off.

As Patroni tests its quorum: a scene is played step by step; before every step the leader may die, members may
come, go, be lost for good or be removed; after every step the promises are checked.
"""

from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmgr.grid.membership import (
    MOST_VOTERS,
    AddVoter,
    HandOver,
    RemoveVoter,
    Sight,
    next_step,
    spare,
)
from kmgr.grid.model import Server, ServerRole, ServerState
from kmgr.ids import ServerId

SERVERS = [ServerId(f"srv-{n}") for n in range(7)]
WITNESSES = [ServerId("srv-w0"), ServerId("srv-w1")]
EVERYBODY = [*SERVERS, *WITNESSES]
STEPS_ENOUGH = 40


@dataclass
class Scene:
    """A grid as the log knows it (`voters`), as the table knows it, and as it is (`up`)."""

    members: dict[ServerId, ServerState] = field(default_factory=dict)
    voters: set[ServerId] = field(default_factory=set)
    up: set[ServerId] = field(default_factory=set)
    behind: set[ServerId] = field(default_factory=set)
    gone: set[ServerId] = field(default_factory=set)
    leader: ServerId | None = None

    def servers(self) -> list[Server]:
        return [
            Server(
                *(one, one, "", "", state, "", "", EVERYBODY.index(one), 0),
                role=ServerRole.WITNESS if one in WITNESSES else ServerRole.SERVER,
            )
            for one, state in self.members.items()
        ]

    def sight(self) -> Sight:
        up = frozenset(self.up)
        return Sight(up, up - self.behind | {self.leader or SERVERS[0]}, frozenset(self.gone) - up)

    def has_majority(self) -> bool:
        return spare(self.voters, self.up) >= 0

    def spare_without(self, who: ServerId) -> int:
        return spare(self.voters, self.up - self.behind - {who})

    def elect(self, turn: int) -> None:
        """Let one of those that have the whole log lead, if there is a majority."""
        able = sorted(self.voters & self.up)
        if self.leader not in able:
            self.leader = None
        if self.has_majority() and self.leader is None:
            # Whoever is behind cannot win; a majority always has somebody who is not (that is what a commit means).
            able = [v for v in able if v not in self.behind] or able
            self.leader = able[turn % len(able)]
        if not self.has_majority():
            self.leader = None

    def step(self) -> bool:
        """Do the next step and check what every step promises; False if there is none."""
        assert self.leader is not None
        before = frozenset(self.voters)
        found = next_step(self.servers(), before, self.sight(), leader=self.leader)
        match found:
            case None:
                return False
            case HandOver(server):
                assert server in before & self.up - self.behind
                assert server != self.leader
                self.leader = server
                return True
            case AddVoter(server):
                assert server in self.up - self.behind, "only one that has caught up votes"
                assert self.members[server] is not ServerState.REMOVED
                assert server not in before
                self.voters.add(server)
            case RemoveVoter(server):
                assert server != self.leader, "the leader never removes itself"
                assert server in before
                self.voters.remove(server)
        assert len(before ^ self.voters) == 1, "one change at a time, so that old and new majorities overlap"
        assert spare(self.voters, self.up) >= 0, "after the step those who are there are a majority"
        # What the old majority acknowledged is known to some voter of every new majority.
        assert len(before) // 2 + 1 + len(self.voters) // 2 + 1 > len(before | self.voters)
        return True

    def settle(self) -> None:
        for _ in range(STEPS_ENOUGH):
            if not self.step():
                return
        raise AssertionError(f"the steps do not end: {self}")


EVENTS = ("die", "return", "forget", "remove", "join", "lag", "catch_up", "election", "step", "step", "step")
events = st.lists(st.tuples(st.sampled_from(EVENTS), st.sampled_from(EVERYBODY)), max_size=60)


def happens(scene: Scene, event: str, who: ServerId, turn: int) -> None:
    known = who in scene.members
    match event:
        case "join" if not known:
            scene.members[who] = ServerState.UP
            scene.up.add(who)
            scene.behind.add(who)
        case "die" if known:
            scene.up.discard(who)
        case "return" if known and scene.members[who] is not ServerState.REMOVED:
            scene.up.add(who)
            scene.gone.discard(who)
            scene.behind.add(who)
        case "forget" if known and who not in scene.up:
            scene.gone.add(who)
        case "remove" if known and sum(s is not ServerState.REMOVED for s in scene.members.values()) > 1:
            # The table says so only if a majority did; the member goes on taking part until it votes no more.
            if scene.leader is not None:
                scene.members[who] = ServerState.REMOVED
        case "lag" if known and who != scene.leader and scene.spare_without(who) >= 0:
            scene.behind.add(who)
        case "catch_up" if who in scene.up:
            scene.behind.discard(who)
        case "election":
            scene.leader = None


@settings(max_examples=400, deadline=None)
@given(story=events)
@example(story=[("join", SERVERS[1]), ("catch_up", SERVERS[1]), ("step", SERVERS[0]), ("remove", SERVERS[0])])
def test_no_story_ends_in_a_grid_that_its_own_steps_stopped(story: list[tuple[str, ServerId]]) -> None:
    scene = Scene({SERVERS[0]: ServerState.UP}, {SERVERS[0]}, {SERVERS[0]}, leader=SERVERS[0])
    for turn, (event, who) in enumerate(story):
        happens(scene, event, who, turn)
        scene.elect(turn)
        if event == "step" and scene.leader is not None:
            scene.step()
        assert len(scene.voters) <= MOST_VOTERS
    # Calm: whoever is there catches up, whoever is not is known to be gone.
    scene.behind.clear()
    scene.gone = set(scene.members) - scene.up
    scene.elect(0)
    if scene.leader is None:
        return  # more voters died at once than any grid survives: `kmgr grid recover`
    scene.settle()
    check_settled(scene)


def check_settled(scene: Scene) -> None:
    here = [one for one in scene.up if scene.members[one] is not ServerState.REMOVED]
    servers = [one for one in here if one in SERVERS]
    removed = {one for one in scene.voters if scene.members[one] is ServerState.REMOVED}
    if here and (scene.voters - removed) & set(here):
        assert not removed or spare(scene.voters - removed, scene.up) < 0 or scene.leader in removed
    if not servers or removed:
        return
    assert scene.leader in SERVERS, "a server leads where one can"
    best = len(servers) if len(servers) % 2 else len(servers) - 1
    if len(servers) % 2 == 0 and len(here) > len(servers):
        best = len(servers) + 1  # with a witness
    best = min(best, MOST_VOTERS)
    possible = spare(range_of(best), range_of(best))
    assert spare(scene.voters, scene.up) >= possible, (scene, possible)


def range_of(count: int) -> list[ServerId]:
    return [ServerId(str(n)) for n in range(count)]


@settings(max_examples=300, deadline=None)
@given(
    voting=st.sets(st.sampled_from(EVERYBODY), min_size=1, max_size=5),
    members=st.sets(st.sampled_from(EVERYBODY)),
    removed=st.sets(st.sampled_from(EVERYBODY)),
    missing=st.sets(st.sampled_from(EVERYBODY)),
    gone=st.sets(st.sampled_from(EVERYBODY)),
    turn=st.integers(0, 4),
)
# Two witnesses that vote without a server: neither fits, and they handed the lead to and fro for ever.
@example(voting={WITNESSES[0], WITNESSES[1]}, members={SERVERS[0]}, removed=set(), missing=set(), gone=set(), turn=0)
def test_from_any_state_the_steps_end_whoever_is_missing(
    voting: set[ServerId],
    members: set[ServerId],
    removed: set[ServerId],
    missing: set[ServerId],
    gone: set[ServerId],
    turn: int,
) -> None:
    known = sorted(voting | members)
    table = {one: ServerState.REMOVED if one in removed else ServerState.UP for one in known}
    scene = Scene(table, set(voting), set(known) - missing, gone=gone & missing)
    scene.elect(turn)
    if scene.leader is None:
        return
    scene.settle()
    assert next_step(scene.servers(), scene.voters, scene.sight(), leader=scene.leader) is None


@given(story=events, shuffled=st.permutations(EVERYBODY))
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_table_does_not_matter(story: list[tuple[str, ServerId]], shuffled: list[ServerId]) -> None:
    scene = Scene({SERVERS[0]: ServerState.UP}, {SERVERS[0]}, {SERVERS[0]}, leader=SERVERS[0])
    for turn, (event, who) in enumerate(story):
        happens(scene, event, who, turn)
        scene.elect(turn)
        if scene.leader is None:
            continue
        servers = scene.servers()
        other = sorted(servers, key=lambda s: shuffled.index(s.id))
        first = next_step(servers, scene.voters, scene.sight(), leader=scene.leader)
        assert first == next_step(other, sorted(scene.voters), scene.sight(), leader=scene.leader)
