"""What people and machines get wrong: a clear word each time, the daemon alive, and nothing lost or left behind."""

import http.client
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from appliance.demo.cluster import Cluster
from appliance.demo.server import Server
from tests.lab import grids
from tests.lab.api import Answer, Api, wait_for
from tests.lab.daemons import Daemon, kmgr, sets
from tests.lab.ports import port

MIB = 1 << 20
SMALL_DISK_MIB = 160
PORT = 250
PASSWORD = "correct-horse-7"


# ── images ──


def offered(boss: Api, file: Path) -> Answer:
    return boss.ask("POST", f"/images?name=bad&file={file.name}", raw=file.read_bytes(), kind="x/y")


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def text_file(folder: Path) -> Path:
    file = folder / "letter.qcow2"
    file.write_text("Dear administrator, this is my Windows.\n" * 400)
    return file


def truncated(folder: Path) -> Path:
    raw, file = folder / "whole.raw", folder / "half.qcow2"
    random_disk(raw, 8)
    qemu_img("convert", "-O", "qcow2", raw, file)
    os.truncate(file, file.stat().st_size // 2)
    return file


def with_backing_file(folder: Path) -> Path:
    file = folder / "thin.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", "-u", file, "64M")
    return file


def random_disk(path: Path, mebibytes: int) -> Path:
    chance = random.Random(mebibytes)  # noqa: S311 - the same bytes each time
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(chance.randbytes(MIB))
        file.seek(510)
        file.write(b"\x55\xaa")
    return path


@pytest.mark.libvirt
@pytest.mark.parametrize(
    ("made", "word"),
    [(text_file, "text file"), (truncated, "truncated"), (with_backing_file, "backing file")],
)
def test_a_file_that_is_no_whole_disk_is_refused_by_name(
    office: Cluster, tmp_path: Path, made: Callable[[Path], Path], word: str
) -> None:
    server = office.servers[1]
    boss = grids.admin(office, server)
    before = boss.items("images")
    answer = offered(boss, made(tmp_path))
    assert answer.status == 400
    assert word in answer.body["error"]["message"]
    assert boss.items("images") == before
    assert not [file for file in (server.data / "images" / "tmp").iterdir() if file.is_file()]


# ── disks that are too small ──


@contextmanager
def on_a_small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MIB}m", "kmgr-test", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def tight(make_grid: Callable[..., Cluster]) -> Iterator[Cluster]:
    """Two servers without libvirt; all that the second one has lies on a disk of 160 MiB."""
    grid = make_grid("tight", names=("one", "two"), desktops=False)
    with on_a_small_disk(grid.server("two").data):
        grid.start()
        yield grid
        grid.stop()


def test_a_server_without_libvirt_runs_and_says_why_it_has_no_desktops(tight: Cluster) -> None:
    boss = grids.admin(tight, tight.servers[0])

    def look() -> bool:
        servers = boss.items("servers")
        told = [" ".join(server["problems"]) for server in servers]
        return all(not server["can_run_desktops"] for server in servers) and all("libvirt" in text for text in told)

    wait_for("both say why", look, timeout_s=20)
    assert set(grids.states(boss).values()) == {"up"}


def test_an_image_that_one_server_has_no_room_for_serves_from_the_other(tight: Cluster, tmp_path: Path) -> None:
    one, two = tight.servers
    boss, there = grids.admin(tight, one), grids.admin(tight, two)
    large = random_disk(tmp_path / "large.raw", SMALL_DISK_MIB + 8)
    boss.ask("POST", "/images?name=large&file=large.raw", raw=large.read_bytes(), kind="x/y").ok()
    version = grids.everywhere(boss, "large", 1)

    def told() -> str | None:
        problems = next(s["problems"] for s in boss.items("servers") if s["name"] == "two")
        return next((text for text in problems if "large" in text), None)

    text = wait_for("two says what it lacks", told, timeout_s=30)
    assert "MiB" in text or "full" in text
    for client in (boss, there):
        assert grids.everywhere(client, "large", 1)["servers"] == [one.id]
    image = next(image for image in boss.items("images") if image["name"] == "large")
    boss.ask("DELETE", f"/images/{image['id']}").ok()
    wait_for("it is no problem any more", lambda: told() is None, timeout_s=20)
    assert all(not path.name.startswith(version["id"]) for path in (two.data / "images").iterdir())


def test_an_upload_larger_than_the_disk_is_refused_before_it_is_read(tight: Cluster, tmp_path: Path) -> None:
    two = tight.servers[1]
    large = random_disk(tmp_path / "large.raw", SMALL_DISK_MIB + 8)
    answer = upload_in_two_halves(two, grids.admin(tight, two), large, "large", between=lambda: None)
    assert answer.status in (503, 507)
    assert "too small" in answer.body["error"]["message"]


def test_a_disk_that_fills_up_during_an_import_stops_the_import_and_nothing_else(
    tight: Cluster, tmp_path: Path
) -> None:
    two = tight.servers[1]
    boss = grids.admin(tight, two)
    file, filler = random_disk(tmp_path / "disk.raw", 48), two.data / "desktops" / "filler"
    daemon = two.daemon

    def fill() -> None:
        left = shutil.disk_usage(two.data).free
        with suppress(OSError):  # what was sent is still being written: less may be left by now
            filler.write_bytes(b"x" * max(0, left - 6 * MIB))

    answer = upload_in_two_halves(two, boss, file, "filling", between=fill)
    assert answer.status in (503, 507), answer
    assert "full" in answer.body["error"]["message"]
    assert two.daemon == daemon is not None
    assert not [path for path in (two.data / "images" / "tmp").iterdir() if path.is_file()]
    filler.unlink()
    # With room again the same import works, also for the log that lies on the same disk.
    boss.ask("POST", "/images?name=filling&file=disk.raw", raw=file.read_bytes(), kind="x/y").ok()
    grids.everywhere(boss, "filling", 2)
    grids.caught_up(tight.servers)
    image = next(image for image in boss.items("images") if image["name"] == "filling")
    boss.ask("DELETE", f"/images/{image['id']}").ok()


def upload_in_two_halves(server: Server, boss: Api, file: Path, name: str, *, between: Callable[[], None]) -> Answer:
    """Send a file, do something in the middle, and return the answer, which may come before all was sent."""
    host, _, number = server.portal.rpartition(":")
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(host, int(number), timeout=60, context=trust)
    size, half = file.stat().st_size, file.stat().st_size // MIB // 2
    try:
        connection.putrequest("POST", f"/api/v1/images?name={name}&file={file.name}")
        connection.putheader("Authorization", f"Bearer {boss.token}")
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        with file.open("rb") as source:
            for place, piece in enumerate(iter(lambda: source.read(MIB), b"")):
                if place == half:
                    between()
                try:
                    connection.send(piece)
                except OSError:
                    break  # it has heard enough: its answer waits to be read
        response = connection.getresponse()
        return Answer(response.status, json.loads(response.read()))
    except TimeoutError:
        raise AssertionError(f"an upload was never answered; the server said: {server.last_words()}") from None
    finally:
        connection.close()


# ── folders, ports, tokens, configuration ──


@pytest.fixture
def pair() -> tuple[int, int]:
    web = port(PORT)
    return web, port(PORT, {web})


def init(data: Path, pair: tuple[int, int], name: str = "solo") -> subprocess.CompletedProcess[str]:
    words = ["init", "--data", str(data), "--name", name, "--grid", "Solo", "--password-file", "-"]
    return kmgr(*words, *sets(*pair), stdin=PASSWORD)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("which", [0, 1], ids=["https", "grid"])
def test_a_port_in_use_ends_the_daemon_with_its_number_and_how_to_find_the_culprit(
    short_tmp: Path, pair: tuple[int, int], which: int
) -> None:
    data = short_tmp / f"port-{which}"
    assert init(data, pair).returncode == 0
    with socket.socket() as other:
        other.bind(("127.0.0.1", pair[which]))
        other.listen()
        ended = kmgr("run", "--data", str(data))
    assert ended.returncode == 78, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert str(pair[which]) in last
    assert "ss -ltnp" in last
    # The port is free again: it starts as if nothing had been.
    daemon = Daemon(data)
    daemon.start()
    assert daemon.stop() == 0, daemon.log


def test_a_second_init_in_a_used_folder_changes_nothing(short_tmp: Path, pair: tuple[int, int]) -> None:
    data = short_tmp / "twice"
    assert init(data, pair).returncode == 0
    before = contents(data)
    again = init(data, pair, name="other")
    assert again.returncode == 1
    assert "already belongs" in again.stderr
    assert "Solo" in again.stderr
    assert contents(data) == before


def test_a_wrong_and_a_used_invitation_are_refused_and_the_newcomer_stays_free(
    tight: Cluster, short_tmp: Path, pair: tuple[int, int]
) -> None:
    one = tight.servers[0]
    boss = grids.admin(tight, one)
    good = one.invite()
    servers = grids.states(boss)

    def join(folder: str, phrase: str, name: str) -> subprocess.CompletedProcess[str]:
        data = short_tmp / folder
        words = ["join", "--data", str(data), "--name", name, "--to", one.grid, "--phrase-file", "-"]
        return kmgr(*words, *sets(*pair), stdin=phrase)

    wrong = join("wrong", "-".join(reversed(good.split("-"))), "three")
    assert wrong.returncode == 1, wrong.stderr
    assert "the phrase is wrong" in wrong.stderr
    assert "4 tries are left" in wrong.stderr
    assert not (short_tmp / "wrong" / "identity" / "identity.json").exists()
    assert grids.states(boss) == servers

    # The folder is not spoilt: the right invitation works in it, once.
    assert join("wrong", good, "three").returncode == 0
    used = join("late", good, "four")
    assert used.returncode == 1, used.stderr
    assert "used" in used.stderr
    assert "three" in grids.states(boss)
    assert "four" not in grids.states(boss)
    newcomer = next(server for server in boss.items("servers") if server["name"] == "three")
    boss.ask("DELETE", f"/servers/{newcomer['id']}").ok()
    wait_for("it is out of the grid again", lambda: "three" not in grids.states(boss), timeout_s=20)


def test_everything_that_is_wrong_in_kmgr_toml_is_said_at_once(short_tmp: Path) -> None:
    data = short_tmp / "misconfigured"
    data.mkdir()
    (data / "kmgr.toml").write_text('name = "one"\nweb_port = 99999\ncolour = "blue"\naccelerator = "warp"\n')
    ended = kmgr("run", "--data", str(data))
    assert ended.returncode == 78
    last = ended.stderr.strip().splitlines()[-1]
    for word in ("kmgr.toml", "99999", "colour: unknown setting", "warp"):
        assert word in last
    (data / "kmgr.toml").write_text("name = one\n")
    ended = kmgr("run", "--data", str(data))
    assert ended.returncode == 78
    assert "not valid TOML" in ended.stderr


# ── libvirt ──


@pytest.mark.libvirt
def test_a_stopped_libvirt_is_told_and_all_heals_when_it_is_back(office: Cluster) -> None:
    boss = grids.admin(office, office.servers[0])
    ready = grids.standby(boss, least=2)
    server = next(s for s in office.servers if s.id == ready[0]["server"])
    assert server.libvirt is not None
    processes = {d["id"]: grids.emulator(d["id"]) for d in ready if d["server"] == server.id}

    def seen() -> grids.Item:
        return next(item for item in boss.items("servers") if item["name"] == server.name)

    server.libvirt.stop_libvirtd()
    told = wait_for(
        "the list of servers says so",
        lambda: (item := seen())["problems"] and not item["can_run_desktops"] and item,
        timeout_s=30,
    )
    assert any("libvirt" in problem for problem in told["problems"])
    assert told["state"] == "up"
    server.libvirt.start_libvirtd()
    wait_for("it is healed", lambda: seen()["can_run_desktops"] and not seen()["problems"], timeout_s=30)
    grids.standby(boss, least=2)
    assert {desktop: grids.emulator(desktop) for desktop in processes} == processes
