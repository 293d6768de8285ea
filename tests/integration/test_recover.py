"""The majority is lost for good: one server goes on, the lost ones stay out, a backup makes a grid anew."""

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from appliance.demo.cluster import ADMIN, Cluster
from appliance.demo.server import Place, Server
from kmgr.grid.raft.journal import Journal
from kmgr.grid.raft.logfile import LogFile
from kmgr.ids import ServerId
from tests.lab import grids
from tests.lab.api import Api, wait_for
from tests.lab.daemons import kmgr
from tests.lab.ports import port

FAR = 230


@pytest.fixture(scope="module")
def office(make_grid: Callable[..., Cluster]) -> Iterator[Cluster]:
    """Three servers without libvirt and some accounts."""
    grid = make_grid("lost", names=("one", "two", "three"), desktops=False)
    grid.start()
    boss = grids.admin(grid, grid.servers[0])
    for number in range(5):
        add_account(boss, f"user{number}")
    grids.caught_up(grid.servers)
    yield grid
    grid.stop()


def add_account(boss: Api, name: str) -> None:
    body = {"name": name, "display_name": name, "role": "user", "groups": [], "password": "correct-horse-7"}
    boss.ask("POST", "/accounts", body).ok()


def accounts(boss: Api) -> set[str]:
    return {account["name"] for account in boss.items("accounts")}


def recover(server: Server) -> subprocess.CompletedProcess[str]:
    return kmgr("grid", "recover", "--yes", "--data", str(server.data))


def status_words(server: Server) -> str:
    return kmgr("status", "--data", str(server.data)).stderr


def returns(server: Server) -> None:
    """Start a server that may have nothing to answer but 503."""
    server._launch()
    wait_for("it listens", lambda: grids.api(server).ask("GET", "/status").status > 0, timeout_s=30)


def is_left_behind(server: Server) -> bool:
    answer = grids.api(server).ask("GET", "/status")
    return answer.status == 503 and answer.body["error"]["code"] == "fenced"


def add(grid: Cluster, name: str, *, to: Server) -> Server:
    server = Server(grid.folder / name, name, desktops=False)
    web = port(FAR)
    place = Place("127.0.0.1", web, port(FAR, {web}))
    server.join(place, to=to.grid, phrase=to.invite())
    server.start()
    grid.servers.append(server)
    return server


def test_the_servers_states_are_compared_and_one_that_differs_is_found(office: Cluster) -> None:
    one, two, three = office.servers

    def verified() -> subprocess.CompletedProcess[str]:
        return kmgr("grid", "verify", "--data", str(one.data))

    alike = verified()
    assert alike.returncode == 0, alike.stderr
    assert "All servers hold the same state" in alike.stdout
    assert {line.split()[0] for line in alike.stdout.splitlines() if "change" in line} == {"one", "two", "three"}

    three.stop_daemon()
    silent = verified()
    assert silent.returncode == 69
    assert "three could not be compared" in silent.stderr

    # What no command of the log has done: a bad disk or memory, or a bug.
    state = three.data / "state.sqlite"
    with closing(sqlite3.connect(state)) as db:
        db.execute("update servers set web_address = 'nowhere:1' where id = ?", [two.id])
        db.commit()
    three.start()
    grids.caught_up(office.servers)
    differing = verified()
    assert differing.returncode == 1
    assert "different states" in differing.stderr
    assert len({line.split()[-1] for line in differing.stdout.splitlines() if "change" in line}) == 2

    # Made anew from the log it is as the others' again.
    three.stop_daemon()
    for path in three.data.glob("state.sqlite*"):
        path.unlink()
    three.start()
    grids.caught_up(office.servers)
    assert verified().returncode == 0


def test_a_server_is_not_recovered_while_its_daemon_runs_or_a_majority_is_there(office: Cluster) -> None:
    one, _, three = office.servers
    running = recover(three)
    assert running.returncode == 78
    assert "another kmgr" in running.stderr
    three.stop_daemon()
    needless = recover(three)
    assert needless.returncode == 1
    assert "nothing has to be recovered" in needless.stderr
    assert one.grid in needless.stdout
    assert "ANSWERS" in needless.stdout
    three.start()
    grids.caught_up(office.servers)


def test_the_last_server_goes_on_with_all_it_had_and_the_lost_ones_cannot_mix_with_it(office: Cluster) -> None:
    one, two, three = office.servers
    boss = grids.admin(office, one)
    add_account(boss, "last")
    grids.caught_up(office.servers)
    known = accounts(boss)
    for server in office.servers:
        server.power_cut()
    kept = office.folder / "kept"
    for server in (one, two):
        shutil.copytree(server.data, kept / server.name, ignore=shutil.ignore_patterns("control.sock"))

    # Without --yes it asks, and takes only the grid's name for an answer.
    asked = kmgr("grid", "recover", "--data", str(three.data), stdin="yes\n")
    assert asked.returncode == 1
    assert "nothing was changed" in asked.stderr
    assert "WARNING" not in asked.stdout
    # As if it had found out before that its folder is an older copy.
    journal = Journal.open(LogFile(three.data / "raft" / "journal"))
    journal.set_doubt(ServerId("srv-one"))
    journal.close()
    warned = kmgr("grid", "recover", "--data", str(three.data), stdin="no\n")
    assert "WARNING: the data here is older than it was" in warned.stdout
    done = recover(three)
    assert done.returncode == 0, done.stderr
    assert "only server" in done.stdout
    three.start()
    boss = grids.admin(office, three)
    wait_for("three leads alone", lambda: grids.states(boss) == {"three": "up"}, timeout_s=20)
    assert accounts(boss) == known
    add_account(boss, "after")
    assert any("was recovered on three" in event["text"] for event in boss.items("events"))

    four = add(office, "four", to=three)
    wait_for("four is up", lambda: grids.states(boss) == {"three": "up", "four": "up"}, timeout_s=30)
    grids.caught_up([three, four])
    assert "after" in accounts(grids.admin(office, four))

    # One of the lost returns with its disk: it is told, says so everywhere, and stays out; nothing else happens.
    returns(two)
    wait_for("two knows", lambda: is_left_behind(two), timeout_s=20)
    assert "recovered without this server on" in status_words(two)
    assert "kmgr reset" in status_words(two)
    assert set(grids.states(boss)) == {"three", "four"}
    two.stop_daemon()
    # After a restart it knows at once, and recovering it is refused.
    returns(two)
    assert is_left_behind(two)
    two.stop_daemon()
    assert "recovered without this server" in recover(two).stderr

    # Two of the lost together are a majority of what they knew: out of sight of the others they do go on.
    shutil.rmtree(two.data)
    shutil.copytree(kept / "two", two.data)
    for server in (three, four):
        server.stop_daemon()
    one.start()
    two.start()
    # They wait for the first words of the third a moment before they elect: it might remember more than they do.
    anyone = grids.api(one)
    wait_for("the old ones have a majority", lambda: anyone.ask("GET", "/status").ok()["majority"], timeout_s=20)
    old = grids.admin(office, one)
    add_account(old, "forked")
    # As soon as they meet one of the new epoch they stop, and nothing of theirs gets across.
    three._launch()
    four._launch()
    for server in (one, two):
        wait_for(f"{server.name} is told", partial(is_left_behind, server), timeout_s=30)
    three.wait_until_it_answers()
    four.wait_until_it_answers()
    boss = grids.admin(office, three)
    wait_for("the new grid goes on", lambda: boss.ask("GET", "/status").ok()["majority"], timeout_s=20)
    assert "forked" not in accounts(boss)
    assert {"after", "last"} <= accounts(boss)

    # Reset, the old one joins again under a new id.
    two.stop_daemon()
    before = two.id
    assert kmgr("reset", "--yes", "--data", str(two.data)).returncode == 0
    web = int(two.portal.rpartition(":")[2])
    place = Place("127.0.0.1", web, int(two.grid.rpartition(":")[2]))
    two.join(place, to=three.grid, phrase=three.invite())
    two.start()
    wait_for("two is back", lambda: grids.states(boss).get("two") == "up", timeout_s=30)
    assert two.id != before
    one.stop_daemon()
    office.servers[:] = [three, four, two]


def test_a_backup_makes_the_grid_anew_on_other_hardware(office: Cluster, short_tmp: Path) -> None:
    three = office.servers[0]
    boss = grids.admin(office, three)
    file = short_tmp / "office.tar"
    made = kmgr("grid", "backup", str(file), "--data", str(three.data))
    assert made.returncode == 0, made.stderr
    assert "keys" in made.stdout
    assert file.stat().st_mode & 0o777 == 0o600
    assert not list((three.data / "tmp").iterdir())
    known = accounts(boss)
    add_account(boss, "too-late")

    fresh = Server(short_tmp / "fresh", "fresh", desktops=False)
    web = port(FAR)
    sets = fresh._sets(Place("127.0.0.1", web, port(FAR, {web})), {})
    words = ["grid", "restore", str(file), "--name", "fresh", "--data", str(fresh.data), *sets]
    done = kmgr(*words)
    assert done.returncode == 0, done.stderr
    assert "images are missing" in done.stdout
    assert "already belongs" in kmgr(*words).stderr
    fresh.start()
    try:
        restored = Api(fresh.portal).log_in(ADMIN, office.password(ADMIN))
        wait_for("fresh is up alone", lambda: grids.states(restored) == {"fresh": "up"}, timeout_s=20)
        assert accounts(restored) == known
        assert "too-late" not in accounts(restored)
        add_account(restored, "new-life")
        status = json.loads(kmgr("status", "--json", "--data", str(fresh.data)).stdout)
        assert status["grid"] == "lost"
    finally:
        fresh.stop()
