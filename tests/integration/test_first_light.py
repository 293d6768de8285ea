"""The whole way through: three servers, one golden image, a user's desktop whose screen arrives from elsewhere."""

import ssl

import aiohttp
import pytest

from appliance.demo.cluster import Cluster
from appliance.demo.server import Server
from tests.lab import grids
from tests.lab.api import Api, wait_for

pytestmark = pytest.mark.libvirt

TEMPLATE = "office"
IMAGE = "test-guest"


def has_ended(client: Api) -> None:
    wait_for("the session has ended", lambda: client.ask("GET", "/offers").status == 401, timeout_s=5)


def _other(grid: Cluster, desktop: grids.Item) -> Server:
    return next(server for server in grid.servers if server.id != desktop["server"])


def test_all_servers_answer_the_same_about_everything_replicated(office: Cluster) -> None:
    clients = [grids.admin(office, server) for server in office.servers]
    grids.standby(clients[0], least=2)
    desktops = grids.agreed(clients, "desktops")
    assert {d["template"] for d in desktops} == {TEMPLATE}
    assert {d["server"] for d in desktops} <= {server.id for server in office.servers}
    for what in ("templates", "accounts", "events"):
        assert grids.agreed(clients, what), what
    assert {tuple(grids.states(client).items()) for client in clients} == {
        (("one", "up"), ("three", "up"), ("two", "up"))
    }


def test_the_golden_image_is_here_on_all_servers_and_byte_for_byte_the_same(office: Cluster) -> None:
    ids = {server.id for server in office.servers}
    versions = [grids.everywhere(grids.admin(office, server), IMAGE, 3) for server in office.servers]
    assert all(set(version["servers"]) == ids for version in versions)
    files = [grids.raw_file(server, versions[0]["id"]) for server in office.servers]
    assert len({file.stat().st_ino for file in files}) == 3
    assert grids.same_bytes(files)


def test_a_log_in_at_one_server_is_honoured_at_another_and_ends_everywhere(office: Cluster) -> None:
    one, two, three = office.servers
    anna = grids.person(office, one, "anna")
    elsewhere = grids.api(two)
    elsewhere.token = anna.token
    wait_for("two knows the session", lambda: elsewhere.ask("GET", "/offers").status == 200, timeout_s=5)
    third = grids.api(three)
    third.token = anna.token
    third.ask("DELETE", "/sessions/current").ok()
    for client in (third, anna, elsewhere):
        has_ended(client)


def test_a_wrong_password_and_a_missing_right_are_told_apart(office: Cluster) -> None:
    one = office.servers[0]
    grids.person(office, one, "anna")
    wrong = grids.api(one).ask("POST", "/sessions", {"user": "anna", "password": "not it"})
    assert wrong.status == 401
    anna = grids.person(office, one, "anna")
    answer = anna.ask("POST", "/images?name=x", {"name": "x", "path": "/etc/passwd"})
    assert answer.status == 403
    assert "admin" in answer.body["error"]["message"]


def test_a_desktop_claimed_at_two_is_the_users_at_every_server_and_made_anew_after_log_out(office: Cluster) -> None:
    one, two, _ = office.servers
    boss = grids.admin(office, one)
    bert = grids.person(office, two, "bert")
    desktop = grids.claim(bert, TEMPLATE)
    assert desktop["user"] == "bert"
    assert desktop["state"] == "in_use"
    at_one = grids.api(one)
    at_one.token = bert.token
    again = at_one.ask("POST", "/desktops", {"template": TEMPLATE})
    assert (again.status, again.body["id"]) == (200, desktop["id"])
    home = next(server for server in office.servers if server.id == desktop["server"])
    assert desktop["id"] in grids.domains(home)

    bert.ask("DELETE", "/sessions/current").ok()
    wait_for(
        "the used desktop is gone, with its domain and its disk",
        lambda: all(d["id"] != desktop["id"] for d in boss.items("desktops")),
        timeout_s=30,
    )
    assert desktop["id"] not in grids.domains(home) | grids.overlays(home)
    assert grids.emulator(desktop["id"]) is None
    fresh = grids.standby(boss, least=2)
    assert desktop["id"] not in {d["id"] for d in fresh}


def test_one_user_gets_one_desktop_from_all_servers_at_once(office: Cluster) -> None:
    clients = [grids.person(office, server, "cleo") for server in office.servers]
    grids.standby(grids.admin(office, office.servers[0]))
    given = {grids.claim(client, TEMPLATE)["id"] for client in clients}
    assert len(given) == 1
    clients[0].ask("DELETE", f"/desktops/{given.pop()}").ok()


async def test_the_display_of_a_desktop_comes_through_a_server_it_does_not_run_on(office: Cluster) -> None:
    first = grids.person(office, office.servers[0], "dora")
    desktop = grids.claim(first, TEMPLATE)
    through = _other(office, desktop)
    dora = grids.api(through)
    dora.token = first.token
    ticket = dora.ask("POST", f"/desktops/{desktop['id']}/ticket").ok()
    assert ticket["url"].startswith(f"wss://{through.portal}/")
    trust = ssl.create_default_context(cafile=str(through.data / "identity" / "web.crt"))
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(ticket["url"], protocols=["binary"], ssl=trust) as display:
            assert display.protocol == "binary"
            assert await display.receive_bytes(timeout=10) == b"RFB 003.008\n"
            await display.send_bytes(b"RFB 003.008\n")
            assert (await display.receive_bytes(timeout=10))[:1] == b"\x01"
        async with http.ws_connect(ticket["url"], protocols=["binary"], ssl=trust) as again:
            refused = await again.receive(timeout=10)
            assert refused.type is aiohttp.WSMsgType.CLOSE, "a ticket opened a display twice"
            assert 4400 <= int(refused.data) < 4500
            assert refused.extra
    # The screen as a picture comes the same way.
    assert dora.ask("GET", f"/desktops/{desktop['id']}/screenshot").status == 200
    dora.ask("DELETE", f"/desktops/{desktop['id']}").ok()


def test_somebody_elses_desktop_does_not_exist_for_a_user(office: Cluster) -> None:
    one = office.servers[0]
    desktop = grids.claim(grids.person(office, one, "emil"), TEMPLATE)
    anna = grids.person(office, one, "anna")
    assert anna.ask("GET", f"/desktops/{desktop['id']}").status == 404
    assert anna.ask("POST", f"/desktops/{desktop['id']}/ticket").status == 404
    assert all(d["id"] != desktop["id"] for d in anna.items("desktops"))
    grids.admin(office, one).ask("DELETE", f"/desktops/{desktop['id']}").ok()
