"""A server dies with everything on it; the others say so, refill the pool, and take it back when it returns."""

import time
from collections.abc import Sequence

import pytest

from appliance.demo.cluster import Cluster
from appliance.demo.server import Server
from tests.lab import grids
from tests.lab.api import Api, wait_for
from tests.lab.grids import Item

pytestmark = pytest.mark.libvirt

TEMPLATE = "office"
IMAGE = "test-guest"
LOST_WITHIN_S = 10.0
PEOPLE = ("frida", "gerd", "hana")


def change(boss: Api, **shape: int) -> None:
    """Change how many desktops of the template there are."""
    template = next(one for one in boss.items("templates") if one["name"] == TEMPLATE)
    boss.ask("PATCH", f"/templates/{template['id']}", shape).ok()


def all_on(office: Cluster, victim: Server, others: Sequence[Server]) -> dict[str, Item]:
    """Give everybody a desktop on one server, and have others stand by, spread over all."""
    boss = grids.admin(office, victim)
    for server in others:
        boss.ask("POST", f"/servers/{server.id}/drain", {"force": True}).ok()
    people = {name: grids.person(office, victim, name) for name in PEOPLE}
    given = {name: grids.claim(person, TEMPLATE) for name, person in people.items()}
    assert {desktop["server"] for desktop in given.values()} == {victim.id}
    change(boss, standby=0)
    for server in others:
        boss.ask("POST", f"/servers/{server.id}/undrain", {}).ok()
    change(boss, standby=len(PEOPLE), maximum=3 * len(PEOPLE))
    # A third of what stands by is lost too: somebody will have to wait for a desktop that boots.
    grids.standby(boss, least=len(PEOPLE) - 1, without=victim.id)
    return given


def come_back(office: Cluster, others: Sequence[Server], victim: Server) -> dict[str, tuple[Api, Item]]:
    """Let everybody log in at a server that lives and ask for a desktop, until each has one that runs."""
    clients = {
        name: grids.api(others[n % len(others)]).log_in(name, office.password(name)) for n, name in enumerate(PEOPLE)
    }
    back: dict[str, tuple[Api, Item]] = {}

    def look() -> bool:
        for name, client in clients.items():
            answer = client.ask("POST", "/desktops", {"template": TEMPLATE})
            if name not in back and answer.status < 202 and answer.body["server"] != victim.id:
                back[name] = client, answer.body
        return len(back) == len(PEOPLE)

    wait_for("everybody has a desktop again", look, timeout_s=60, every_s=0.5)
    return back


def loss(client: Api, name: str, desktop: Item) -> Item:
    """Wait until somebody is told beside the new desktop what was lost, and return that."""

    def look() -> Item | None:
        lost: Item | None = client.ask("GET", f"/desktops/{desktop['id']}").ok()["lost"]
        return lost

    return wait_for(f"{name} is told what was lost", look, timeout_s=10)


def test_a_dead_server_is_lost_within_ten_seconds_and_its_users_work_on_others(office: Cluster) -> None:
    victim, *others = reversed(office.servers)
    desktops = all_on(office, victim, others)
    watchers = [grids.admin(office, server) for server in others]
    before = {d["id"] for d in watchers[0].items("desktops") if d["server"] == victim.id}

    began = time.monotonic()
    victim.power_cut()
    for watcher in watchers:
        grids.becomes(watcher, victim, "lost", timeout_s=LOST_WITHIN_S - (time.monotonic() - began))
    lost_s = time.monotonic() - began
    assert [grids.emulator(desktop["id"]) for desktop in desktops.values()] == [None] * len(PEOPLE)

    # Everybody comes back at a server that lives, gets another desktop, and is told what is gone.
    back = come_back(office, others, victim)
    back_s = time.monotonic() - began
    assert {desktop["id"] for _, desktop in back.values()}.isdisjoint(before)
    for name, (client, desktop) in back.items():
        told = loss(client, name, desktop)
        assert (told["desktop"], told["server_name"]) == (desktops[name]["name"], victim.name)
        assert "saved only on that desktop, is gone" in told["text"]
        assert [offer["lost"] for offer in client.items("offers") if offer["name"] == TEMPLATE] == [told]
    grids.standby(watchers[0], least=len(PEOPLE), without=victim.id)
    full_s = time.monotonic() - began
    assert grids.agreed(watchers, "desktops")
    print(f"{len(PEOPLE)} people lost their desktops with {victim.name}, {told['text']!r}")
    print(f"lost after {lost_s:.1f} s, all back after {back_s:.1f} s, the pool full after {full_s:.1f} s")

    # It returns: up again, with nothing of what it had, and with the same image as the others.
    victim.start()
    for watcher in watchers:
        grids.becomes(watcher, victim, "up", timeout_s=30)
    kept = grids.only_wanted_domains(victim, watchers[0])
    assert not kept & before
    for client in [*watchers, grids.admin(office, victim)]:
        assert {d["id"] for _, d in back.values()} <= {d["id"] for d in client.items("desktops")}
    version = grids.everywhere(watchers[0], IMAGE, 3)
    assert grids.same_bytes([grids.raw_file(server, version["id"]) for server in office.servers])
    grids.agreed([grids.admin(office, server) for server in office.servers], "desktops")
    for _, desktop in back.values():
        watchers[0].ask("DELETE", f"/desktops/{desktop['id']}").ok()
    change(watchers[0], standby=2, maximum=6)


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
