"""A server dies with everything on it; the others say so, refill the pool, and take it back when it returns."""

import time

import pytest

from appliance.demo.cluster import Cluster
from tests.lab import grids
from tests.lab.api import wait_for

pytestmark = pytest.mark.libvirt

TEMPLATE = "office"
IMAGE = "test-guest"
LOST_WITHIN_S = 10.0


def test_a_dead_server_is_lost_within_ten_seconds_and_its_user_works_on_another(office: Cluster) -> None:
    boss = grids.admin(office, office.servers[0])
    grids.standby(boss, least=2)
    frida = grids.person(office, office.servers[1], "frida")
    desktop = grids.claim(frida, TEMPLATE)
    victim = next(server for server in office.servers if server.id == desktop["server"])
    others = [server for server in office.servers if server is not victim]
    watchers = [grids.admin(office, server) for server in others]
    before = {d["id"] for d in watchers[0].items("desktops") if d["server"] == victim.id}

    began = time.monotonic()
    victim.power_cut()
    for watcher in watchers:
        wait_for(
            f"{victim.name} is lost",
            lambda w=watcher: grids.states(w)[victim.name] == "lost",
            timeout_s=LOST_WITHIN_S - (time.monotonic() - began),
        )
    assert grids.emulator(desktop["id"]) is None

    # The user comes back at a server that lives, and gets another desktop.
    again = grids.person(office, others[1], "frida")
    given = grids.claim(again, TEMPLATE)
    assert given["id"] != desktop["id"]
    assert given["server"] != victim.id
    grids.standby(watchers[0], least=2, without=victim.id)
    assert grids.agreed(watchers, "desktops")

    # It returns: up again, with nothing of what it had, and with the same image as the others.
    victim.start()
    for watcher in watchers:
        wait_for(f"{victim.name} is up", lambda w=watcher: grids.states(w)[victim.name] == "up", timeout_s=30)
    kept = grids.only_wanted_domains(victim, watchers[0])
    assert not kept & before
    for client in [*watchers, grids.admin(office, victim)]:
        assert given["id"] in {d["id"] for d in client.items("desktops")}
    version = grids.everywhere(watchers[0], IMAGE, 3)
    assert grids.same_bytes([grids.raw_file(server, version["id"]) for server in office.servers])
    grids.agreed([grids.admin(office, server) for server in office.servers], "desktops")
    watchers[0].ask("DELETE", f"/desktops/{given['id']}").ok()


def test_without_a_majority_nothing_is_changed_and_the_reason_is_given(office: Cluster) -> None:
    one, two, three = office.servers
    boss = grids.admin(office, one)
    notes = next(t for t in boss.items("templates") if t["name"] == TEMPLATE)
    for server in (two, three):
        server.stop_daemon()
    wait_for("one knows it is alone", lambda: not boss.ask("GET", "/status").ok()["majority"], timeout_s=20)
    # What it has it still shows; what would have to be agreed on is refused.
    assert {d["template"] for d in boss.items("desktops")} <= {t["name"] for t in boss.items("templates")}
    answer = boss.ask("PATCH", f"/templates/{notes['id']}", {"notes": "alone"})
    assert answer.status in (503, 504), answer
    assert answer.body["error"]["message"]
    for server in (two, three):
        server.start()
    grids.caught_up(office.servers)
    wait_for("all are up", lambda: set(grids.states(boss).values()) == {"up"}, timeout_s=30)
    notes = next(t for t in boss.items("templates") if t["name"] == TEMPLATE)
    if answer.status == 503:
        assert notes["notes"] != "alone"
