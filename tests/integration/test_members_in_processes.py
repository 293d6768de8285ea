"""Real servers without desktops: the leader of two is removed, a removed one is told, folders know their role."""

from collections.abc import Callable, Iterator

import pytest

from appliance.demo.cluster import Cluster
from tests.lab import grids
from tests.lab.api import wait_for
from tests.lab.daemons import kmgr

WITHIN_S = 30.0


@pytest.fixture
def pair(make_grid: Callable[..., Cluster], request: pytest.FixtureRequest) -> Iterator[Cluster]:
    number = request.node.session.items.index(request.node)
    grid = make_grid(f"members{number}", names=("one", "two"), desktops=False)
    grid.start()
    yield grid
    grid.stop()


def test_the_leader_of_two_is_removed_and_the_other_goes_on_alone(pair: Cluster) -> None:
    boss = grids.admin(pair, pair.servers[0])
    wait_for("both vote", lambda: all(s["voter"] for s in boss.items("servers")), timeout_s=WITHIN_S)
    leading = next(s["name"] for s in boss.items("servers") if s["leader"])
    leader, other = pair.server(leading), next(s for s in pair.servers if s.name != leading)

    # On the leader itself, at its own terminal: it hands over before its vote ends.
    done = kmgr("remove", leading, "--data", str(leader.data))
    assert done.returncode == 0, done.stderr
    alone = grids.admin(pair, other)

    def is_alone() -> bool:
        status = alone.ask("GET", "/status").ok()
        members = alone.items("servers")
        return bool(status["majority"]) and [(s["name"], s["voter"]) for s in members] == [(other.name, True)]

    wait_for("the other one leads alone", is_alone, timeout_s=WITHIN_S)
    alone.ask("PATCH", "/settings", {"login_tries": 9}).ok()

    def is_told() -> bool:
        answer = grids.api(leader).ask("GET", "/status")
        return answer.status == 503 and "was removed from the grid" in str(answer.body)

    wait_for("the removed one is told", is_told, timeout_s=WITHIN_S)
    told = kmgr("status", "--data", str(leader.data))
    assert "was removed from the grid" in told.stderr
    assert "kmgr reset" in told.stderr
    # Without its peer the other one goes on, also after a restart.
    leader.stop_daemon()
    other.stop_daemon()
    other.start()
    wait_for("it goes on", is_alone, timeout_s=WITHIN_S)


def test_a_folder_is_started_as_what_it_joined_as(pair: Cluster) -> None:
    one, two = pair.servers
    two.stop_daemon()
    wrong = kmgr("witness", "run", "--data", str(two.data))
    assert wrong.returncode == 78
    assert "belongs to a server, not to a witness" in wrong.stderr
    (two.data / "kmgr.toml").write_text('name = "two"\nrole = "witness"\n')
    wrong = kmgr("run", "--data", str(two.data))
    assert wrong.returncode == 78
    assert "kmgr witness run" in wrong.stderr
    nobody = kmgr("remove", "three", "--data", str(one.data))
    assert nobody.returncode == 1
    assert "there is no server 'three'" in nobody.stderr
