"""A tenure is always that of a server of the grid, whatever is asked of the log in whichever order."""

from hypothesis import given
from hypothesis import strategies as st

from kmgr.grid.model import ServerState
from kmgr.grid.queries import servers
from kmgr.ids import ServerId
from kmgr.provision.queries import tenures
from tests.lab.state import State

SERVERS = [ServerId(f"srv-{letter}") for letter in "abc"]
COMMANDS = st.tuples(
    st.sampled_from(
        (
            "tenure.begin",
            "tenure.give_back",
            "tenure.end",
            "server.remove",
            "server.lost",
            "server.up",
            "server.drain",
        )
    ),
    st.sampled_from([*SERVERS, ServerId("srv-none")]),
    st.sampled_from(("t-1", "t-2")),
)


@given(st.lists(COMMANDS, max_size=25))
def test_no_tenure_is_that_of_a_server_that_is_not_in_the_grid(commands: list[tuple[str, ServerId, str]]) -> None:
    state = State()
    for name in "abc":
        state.server(name)
    for type_, server, tenure in commands:
        state.do(type_, server=server, tenure=tenure)
        known = {one.id for one in servers(state.db, removed=True) if one.state is not ServerState.REMOVED}
        assert tenures(state.db) <= known
