"""Three servers without a grid become one: two through the wizard's API, the third by a command."""

import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.api import Api, wait_for
from tests.lab.daemons import Daemon, kmgr, sets
from tests.lab.ports import port

FIRST_PORT = 200
PASSWORD = "correct-horse-7"

Pair = tuple[int, int]


@pytest.fixture
def ports() -> list[Pair]:
    """Three pairs of free ports."""
    taken: set[int] = set()
    pairs = []
    for _ in range(3):
        pair = []
        for _ in range(2):
            pair.append(port(FIRST_PORT, taken))
            taken.add(pair[-1])
        pairs.append((pair[0], pair[1]))
    return pairs


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    """Filled by the test, emptied here."""
    started: list[Daemon] = []
    yield started
    for daemon in started:
        if daemon.alive:
            assert daemon.stop() == 0, daemon.log[-2000:]


def newcomer(folder: Path, pair: Pair) -> Daemon:
    values = {
        "name": "fresh", "web_host": "127.0.0.1", "web_port": pair[0], "grid_host": "127.0.0.1",
        "grid_port": pair[1], "libvirt_uri": "", "mdns": False,
    }  # fmt: skip
    daemon = Daemon(folder, values)
    daemon.start()
    return daemon


def formed(api: Api) -> None:
    wait_for("the wizard made way for the grid", lambda: api.ask("GET", "/status").status == 200, timeout_s=20)


def names(api: Api) -> set[tuple[str, str]]:
    return {(server["name"], server["state"]) for server in api.items("servers")}


def _certificate(port: int) -> str:
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def test_two_questions_make_a_grid_and_two_more_let_a_server_join(
    short_tmp: Path, ports: list[Pair], daemons: list[Daemon]
) -> None:
    for number, pair in enumerate(ports[:2]):
        daemons.append(newcomer(short_tmp / f"wizard-{number}", pair))
    first, second = daemons
    setup = first.api.ask("GET", "/setup").ok()
    assert setup["fingerprint"] == _certificate(ports[0][0])
    refused = first.api.ask("GET", "/servers")
    assert (refused.status, refused.body["error"]["code"]) == (503, "no_grid")

    body = {"grid": {"name": "Wizards"}, "server": {"name": "one"}, "admin": {"name": "boss", "password": PASSWORD}}
    first.api.ask("POST", "/setup", body).ok()
    formed(first.api)
    boss = first.api.log_in("boss", PASSWORD)
    assert names(boss) == {("one", "up")}
    assert boss.ask("GET", "/status").ok()["grid"] == "Wizards"

    invitation = boss.ask("POST", "/servers/invitation").ok()
    join = {"address": invitation["address"], "phrase": invitation["phrase"]}
    second.api.ask("POST", "/setup", {"join": join, "server": {"name": "two"}}).ok()
    formed(second.api)

    invitation = boss.ask("POST", "/servers/invitation").ok()
    third = Daemon(short_tmp / "wizard-2")
    joined = kmgr(
        "join", "--data", str(third.data), "--name", "three", "--to", invitation["address"], "--phrase-file", "-",
        *sets(*ports[2]), stdin=invitation["phrase"],
    )  # fmt: skip
    assert joined.returncode == 0, joined.stderr
    third.start()
    daemons.append(third)

    for daemon in daemons:
        # The first administrator's account is everywhere: nobody made it a second time.
        sees_all(daemon.api.log_in("boss", PASSWORD))


def sees_all(client: Api) -> None:
    everybody = {("one", "up"), ("two", "up"), ("three", "up")}
    wait_for("all see all", lambda: names(client) == everybody, timeout_s=30)


def test_wrong_answers_are_all_named_at_once_and_nothing_is_made(
    short_tmp: Path, ports: list[Pair], daemons: list[Daemon]
) -> None:
    fresh = newcomer(short_tmp / "wizard-wrong", ports[0])
    daemons.append(fresh)
    answer = fresh.api.ask(
        "POST",
        "/setup",
        {"grid": {"name": ""}, "server": {"name": "-x-"}, "admin": {"name": "boss", "password": "x"}},
    )
    assert answer.status == 400
    message = answer.body["error"]["message"]
    assert "grid" in message
    assert "-x-" in message
    assert "password" in message
    nobody = {"address": f"127.0.0.1:{ports[1][1]}", "token": "nonsense"}
    answer = fresh.api.ask("POST", "/setup", {"join": nobody, "server": {"name": "two"}})
    assert answer.status in (400, 403), answer
    # The wizard still waits.
    assert fresh.api.ask("GET", "/setup").status == 200
    assert not (fresh.data / "identity" / "identity.json").exists()
