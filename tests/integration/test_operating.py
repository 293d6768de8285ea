"""Every procedure of docs/operating.md, typed line by line on real daemons, in the order of the page.

Each heading with lines to type has a check here: what must be so afterwards. They
build on each other, as the page does: one story of one grid.
"""

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.api import Api, wait_for
from tests.lab.machines import Room

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
WITHIN_S = 30.0
# One that has a boot sector and nothing else.
DISK = bytes(510) + b"\x55\xaa" + bytes((1 << 20) - 512)
Check = Callable[[Room], None]
CHECKS: dict[str, Check] = {}


def procedures() -> dict[str, list[tuple[str, str]]]:
    """Return (machine, line) of each heading that has lines to type."""
    found: dict[str, list[tuple[str, str]]] = {}
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
        lines = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
        typed = [(line.partition("# ")[0], line.partition("# ")[2]) for line in lines]
        if typed:
            found[heading] = typed
    return found


def check(heading: str) -> Callable[[Check], Check]:
    def note(function: Check) -> Check:
        CHECKS[heading] = function
        return function

    return note


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with tempfile.TemporaryDirectory(prefix="kmgr-operating-") as folder:
        Path(folder).chmod(0o711)
        room = Room(Path(folder))
        yield room
        room.close()


def test_every_procedure_has_a_check_and_every_check_a_procedure() -> None:
    assert list(procedures()) == list(CHECKS)


@pytest.mark.parametrize("heading", procedures())
def test_procedure(room: Room, heading: str) -> None:
    began = time.monotonic()
    for machine, line in procedures()[heading]:
        prepared(room, heading, machine, line)
        room.type(machine, line)
    CHECKS[heading](room)
    print(f"{heading}: {time.monotonic() - began:.1f} s")


def prepared(room: Room, heading: str, machine: str, line: str) -> None:
    """Wait for what the page tells to wait for."""
    if line == "kmgr status":
        wanted = "HAS NO majority" if heading == "Two servers" else "lost"
        wait_for("the loss is noticed", lambda: wanted in status(room, machine), timeout_s=WITHIN_S)
    if heading == "A server from a backup" and (machine, line) == ("two", "systemctl stop kmgr"):
        put_back(room, "two")
    if heading == "Replacing a server" and line == "kmgr drain two":
        wait_for("three is up", lambda: states(room.admin("one"))["three"] == "up", timeout_s=WITHIN_S)
        voters(room, "one", "two", "three")
    if heading == "Moving images to another disk" and line == "systemctl stop kmgr":
        wait_for("three has the image", lambda: holders(room.admin("one")) == 2, timeout_s=WITHIN_S)
    if heading == "Letting a removed server return" and line == "systemctl stop kmgr":
        wait_for("three is told", lambda: is_told(room, "three"), timeout_s=WITHIN_S)


def put_back(room: Room, name: str) -> None:
    """Do what the page says not to do: put an older copy of a server's folder back."""
    machine, older = room[name], room.folder / "older"
    machine.stop()
    shutil.copytree(machine.data, older)
    machine.start()
    boss = all_up(room, "one", "two")
    boss.ask("PATCH", "/settings", {"login_tries": 7}).ok()
    machine.stop()
    shutil.rmtree(machine.data)
    older.rename(machine.data)
    machine.start()
    words = "older than what it had promised"
    wait_for("it is noticed", lambda: words in machine.log, timeout_s=WITHIN_S)
    wait_for("its console says so", lambda: words in " ".join(problems(room.admin(name))), timeout_s=WITHIN_S)
    assert "kmgr grid recover" in next(text for text in problems(room.admin(name)) if words in text)


def status(room: Room, name: str) -> str:
    room.type(name, "kmgr status")
    return room.said


def states(boss: Api) -> dict[str, str]:
    return {server["name"]: server["state"] for server in boss.items("servers")}


def holders(boss: Api) -> int:
    """Return how many servers hold the image."""
    return len(boss.items("images")[0]["versions"][0]["servers"])


def problems(boss: Api, of: str = "") -> list[str]:
    """Return the problems that the console shows: of one server, or of all."""
    return [text for server in boss.items("servers") if of in ("", server["name"]) for text in server["problems"]]


def voters(room: Room, *names: str) -> None:
    boss = room.admin("one")
    wait_for(
        f"{names} vote",
        lambda: {s["name"] for s in boss.items("servers") if s["voter"]} == set(names),
        timeout_s=WITHIN_S,
    )


def all_up(room: Room, *names: str, at: str = "one") -> Api:
    boss = room.admin(at)
    wait_for(f"{names} are up", lambda: states(boss) == dict.fromkeys(names, "up"), timeout_s=WITHIN_S)
    return boss


def history(boss: Api) -> list[str]:
    return [event["text"] for event in boss.items("events")]


def is_told(room: Room, name: str) -> bool:
    """Tell whether a server says on its pages and in its log that it was removed."""
    answer = room[name].api.ask("GET", "/status")
    words = str(answer.body)
    return answer.status == 503 and "was removed from the grid" in words and "kmgr reset" in words


@check("The first server")
def founded(room: Room) -> None:
    boss = all_up(room, "one")
    # So that a test need not wait for minutes.
    for setting, value in (("heartbeat_ms", 500), ("lost_after_ms", 2_000)):
        boss.ask("PATCH", "/settings", {setting: value}).ok()
    boss.ask("POST", "/images?name=disk", raw=DISK, kind="application/octet-stream").ok()


@check("Adding a server")
def added(room: Room) -> None:
    boss = all_up(room, "one", "two")
    voters(room, "one", "two")
    wait_for("two has the image", lambda: holders(boss) == 2, timeout_s=WITHIN_S)


@check("Two servers")
def two_servers(room: Room) -> None:
    boss = all_up(room, "one", "two")
    told = boss.ask("GET", "/redundancy").ok()
    assert not told["ok"]
    assert "add a witness" in " ".join(told["sentences"])


@check("A server from a backup")
def made_whole(room: Room) -> None:
    boss = all_up(room, "one", "two")
    voters(room, "one", "two")
    assert {s["name"]: s["value"] for s in boss.items("settings")}["login_tries"] == 7


@check("Adding a witness")
def witness_added(room: Room) -> None:
    boss = all_up(room, "one", "two", "w")
    voters(room, "one", "two", "w")
    wait_for("one may be lost", lambda: boss.ask("GET", "/redundancy").ok()["ok"], timeout_s=WITHIN_S)
    (witness,) = [s for s in boss.items("servers") if s["role"] == "witness"]
    assert witness["name"] == "w"
    assert not witness["can_run_desktops"]
    # One server dies: a change is accepted all the same, and a server leads.
    room["two"].power_off()
    wait_for(
        "a change is accepted", lambda: boss.ask("PATCH", "/settings", {"login_tries": 9}).status == 200, timeout_s=10
    )
    wait_for("one leads", lambda: "leader one" in status(room, "one"), timeout_s=10)
    room["two"].start()
    all_up(room, "one", "two", "w")
    print(f"the witness uses {room['w'].rss_mib:.1f} MiB")
    assert room["w"].rss_mib <= 64


@check("Draining a server")
def drained(room: Room) -> None:
    boss = all_up(room, "one", "two", "w")
    assert "two drains: it is given no new desktops" in history(boss)
    assert "two drains no longer" in history(boss)


@check("Replacing a server")
def replaced(room: Room) -> None:
    boss = all_up(room, "one", "three", "w")
    voters(room, "one", "three", "w")
    assert not any("although" in text for text in history(boss))
    wait_for("two is told", lambda: is_told(room, "two"), timeout_s=WITHIN_S)
    assert "was removed from the grid" in room["two"].log
    room["two"].stop()


@check("Changing a server's address")
def moved(room: Room) -> None:
    boss = all_up(room, "one", "three", "w")
    there = {"three": f"127.0.0.1:{room['three'].grid}"}
    wait_for(
        "its address is known",
        lambda: there.items() <= {s["name"]: s["grid_address"] for s in boss.items("servers")}.items(),
        timeout_s=WITHIN_S,
    )
    # Reached there: its vote is needed when the witness is away.
    room["w"].stop()
    boss.ask("PATCH", "/settings", {"login_tries": 10}).ok()
    room["w"].start()
    all_up(room, "one", "three", "w")


@check("Moving images to another disk")
def images_moved(room: Room) -> None:
    boss, three = all_up(room, "one", "three", "w"), room["three"]
    images, big = three.data / "images", room.folder / "three-big"
    assert images.is_symlink()
    assert holders(boss) == 2
    # The disk is not mounted: not a loss of images, and it goes on when it is.
    three.stop()
    away = big.rename(room.folder / "away")
    three.start()
    wait_for(
        "it is told",
        lambda: "disk of golden images is not there" in " ".join(problems(boss, "three")),
        timeout_s=WITHIN_S,
    )
    assert holders(boss) == 2
    assert not next(s for s in boss.items("servers") if s["name"] == "three")["can_run_desktops"]
    away.rename(big)
    wait_for("it goes on", lambda: "not there" not in " ".join(problems(boss, "three")), timeout_s=WITHIN_S)
    assert three.log.count("copied in") == 1
    assert not (three.data / "images-before").exists()


@check("Removing a dead server")
def dead_removed(room: Room) -> None:
    boss = all_up(room, "one", "w")
    voters(room, "one")
    assert "three was removed from the grid" in history(boss)


@check("Letting a removed server return")
def returned(room: Room) -> None:
    boss = all_up(room, "one", "three", "w")
    voters(room, "one", "three", "w")
    log = room["three"].log
    assert "was removed from the grid" in log
    wait_for("three has the image", lambda: holders(boss) == 2, timeout_s=WITHIN_S)
    assert "is here" in log.rpartition("was removed from the grid")[2]
    assert log.count("copied in") == 1


@check("Removing a witness")
def witness_removed(room: Room) -> None:
    boss = all_up(room, "one", "three")
    voters(room, "one", "three")
    (removed,) = [text for text in history(boss) if text.startswith("w was removed")]
    assert "although: only 2 servers vote (one, three)" in removed
    assert "was removed from the grid" in room["w"].log


@check("Losing the majority")
def recovered(room: Room) -> None:
    boss = all_up(room, "one")
    boss.ask("PATCH", "/settings", {"login_tries": 11}).ok()
    assert any("recovered on one" in text for text in history(boss))


@check("Backing up")
def backed_up(room: Room) -> None:
    assert (room.folder / "office.tar").stat().st_size > 0


@check("Restoring")
def restored(room: Room) -> None:
    boss = all_up(room, "four", at="four")
    assert {s["name"]: s["value"] for s in boss.items("settings")}["login_tries"] == 11
