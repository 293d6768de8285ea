"""What the log allows: a desktop goes to its copy once per loss, and a word about an older generation is not heard.

Commands are made from what somebody believed at some moment, and arrive in any
order later, twice or never: as they do after a partition.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from kmgr.grid.envelope import Applied, Command, Rejected
from kmgr.grid.rows import Row, one, rows
from kmgr.ids import ServerId
from kmgr.provision import copy_commands
from kmgr.provision.desktop_rows import owned_row
from tests.lab.state import State

SERVERS = ("srv-a", "srv-b", "srv-c")
Deed = tuple[str, int, int]

deeds = st.lists(
    st.tuples(
        st.sampled_from(("believe", "lose", "back", "assign", "points", "take over", "promoted", "dropped")),
        st.integers(0, 2),
        st.integers(0, 5),
    ),
    max_size=40,
)


def started() -> State:
    """Return three servers and a personal desktop of Anna's on the first."""
    state = State()
    for name in "abc":
        state.server(name)
    state.template("own", kind="personal")
    made = state.desktop("tpl-own", ServerId("srv-a"), "in_use")
    state.db.execute("update desktops set id = 'dsk-1', kind = 'personal' where id = ?", [made])
    return state


def walk(sequence: list[Deed]) -> None:
    """Do all of it; whatever is accepted must be about the desktop as it is at that moment."""
    state, beliefs = started(), [_now(started())]
    for what, which, older in sequence:
        server = SERVERS[which]
        believed = beliefs[-1 - older % len(beliefs)]
        now = _now(state)
        match what:
            case "believe":
                beliefs.append(now)
            case "lose" | "back":
                state.do(f"server.{'lost' if what == 'lose' else 'up'}", server=server)
            case "assign":
                state.do("copy.assign", desktop="dsk-1", generation=believed["generation"], server=server)
            case "points":
                _points(state, believed, now, server)
            case "take over":
                _take_over(state, believed, now, server)
            case "promoted":
                told = {"desktop": "dsk-1", "generation": believed["generation"], "server": believed["server"]}
                if isinstance(state.do("copy.promoted", **told, as_of=1), Applied):
                    assert (believed["generation"], believed["server"]) == (now["generation"], now["server"])
            case "dropped":
                key = {"desktop": "dsk-1", "server": server, "generation": believed["generation"]}
                state.do("copy.dropped", **key)
        assert _now(state)["generation"] - now["generation"] in (0, 1)
        _check(state)


def _points(state: State, believed: Row, now: Row, server: str) -> None:
    point = {"desktop": "dsk-1", "generation": believed["generation"], "server": server, "as_of": 1, "bytes": 1}
    outcome = state.do("copy.points", server=believed["server"], points=[point])
    assert isinstance(outcome, Applied)
    if outcome.values["taken"]:
        assert (believed["generation"], believed["server"]) == (now["generation"], now["server"])


def _take_over(state: State, believed: Row, now: Row, target: str) -> None:
    body = {"desktop": "dsk-1", "generation": believed["generation"], "server": believed["server"]}
    outcome = state.do("desktop.take_over", **body, lost_at=believed["lost_at"], target=target)
    if isinstance(outcome, Applied):
        assert believed["generation"] == now["generation"], "a late word started the desktop once more"
        assert (believed["server"], believed["lost_at"]) == (now["server"], now["lost_at"])
        assert now["stands"] == "lost", "its server may be running it"
        assert _now(state)["server"] == target != now["server"]


def _check(state: State) -> None:
    live = rows(state.db, "select * from copies where state in ('wanted', 'ready', 'starting') order by server")
    desktop = _now(state)
    for copy in live:
        if copy["state"] == "starting":
            assert (copy["server"], copy["generation"] + 1) == (desktop["server"], desktop["generation"])
        elif copy["generation"] == desktop["generation"]:
            assert copy["server"] != desktop["server"]


def _now(state: State) -> Row:
    found = one(
        state.db,
        "select d.server, d.generation, s.changed_at as lost_at, s.state as stands"
        " from desktops d join servers s on s.id = d.server where d.id = 'dsk-1'",
    )
    assert found is not None
    return found


@given(deeds)
@settings(max_examples=300, deadline=None)
def test_only_what_is_true_now_is_accepted(sequence: list[Deed]) -> None:
    walk(sequence)


LATE: list[Deed] = [
    ("assign", 1, 0), ("points", 1, 0), ("lose", 0, 0), ("believe", 0, 0), ("take over", 1, 0),
    ("back", 0, 0), ("promoted", 0, 0), ("believe", 0, 0), ("promoted", 0, 0), ("assign", 0, 0), ("points", 0, 0),
    ("lose", 1, 0), ("believe", 0, 0), ("take over", 0, 0),
    ("promoted", 0, 1),
]  # fmt: skip


def test_a_late_word_of_an_older_generation_is_not_heard() -> None:
    walk(LATE)


def test_without_the_check_of_the_generation_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(db: Database, command: Command) -> Row | Rejected:
        row = one(db, "select * from desktops where id = ?", [command.body["desktop"]])
        assert row is not None
        told = type(command)(
            command.type, command.id, command.at, command.by, {**command.body, "generation": row["generation"]}
        )
        return owned_row(db, told)

    monkeypatch.setattr(copy_commands, "owned_row", unchecked)
    with pytest.raises(AssertionError):
        for sequence in SEARCHED:
            walk(sequence)


# A third loss: the desktop is on its first server again, and somebody still believes in its first generation there.
SEARCHED: list[list[Deed]] = [
    [
        ("assign", 1, 0), ("points", 1, 0), ("lose", 0, 0), ("believe", 0, 0), ("take over", 1, 0), ("back", 0, 0),
        ("believe", 0, 0), ("promoted", 0, 0), ("promoted", 0, 1), ("promoted", 0, 2),
    ],
    LATE,
    [*LATE[:8], ("promoted", 0, 1), ("promoted", 0, 2)],
    [
        ("assign", 1, 0), ("points", 1, 0), ("lose", 0, 0), ("believe", 0, 0), ("take over", 1, 0), ("back", 0, 0),
        ("believe", 0, 0), ("promoted", 1, 0), ("assign", 0, 0), ("points", 0, 0), ("lose", 1, 0), ("believe", 0, 0),
        ("take over", 0, 0), ("promoted", 0, 2),
    ],
]  # fmt: skip
