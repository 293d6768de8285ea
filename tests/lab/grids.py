"""What tests ask of a running grid: clients, agreement of all servers, desktops, the processes behind them."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from appliance.demo.cluster import ADMIN, Cluster
from appliance.demo.server import Server
from tests.lab.api import Api, wait_for

Item = dict[str, Any]

SETTLE_S = 20.0
DESKTOP_S = 120.0


def api(server: Server) -> Api:
    """Return a client of one server, nobody logged in."""
    return Api(server.portal)


def admin(grid: Cluster, server: Server) -> Api:
    """Return the administrator's client at one server."""
    return api(server).log_in(ADMIN, grid.password(ADMIN))


def person(grid: Cluster, server: Server, name: str) -> Api:
    """Return a user's client at one server; the account and the right to every template are made if missing."""
    boss = admin(grid, server)
    password = grid.password(name)
    if all(account["name"] != name for account in boss.items("accounts")):
        body = {"name": name, "display_name": name, "role": "user", "groups": [], "password": password}
        boss.ask("POST", "/accounts", body).ok()
    for template in boss.items("templates"):
        boss.ask("POST", f"/templates/{template['id']}/assignments", {"kind": "user", "subject": name}).ok()
    return api(server).log_in(name, password)


def agreed(clients: Sequence[Api], what: str, *, timeout_s: float = SETTLE_S) -> list[Item]:
    """Wait until all servers give the same list, and return it."""

    def look() -> tuple[list[Item]] | None:
        first, *others = [client.items(what) for client in clients]
        return (first,) if all(other == first for other in others) else None

    return wait_for(f"all servers give the same {what}", look, timeout_s=timeout_s)[0]


def caught_up(servers: Sequence[Server], *, timeout_s: float = SETTLE_S) -> int:
    """Wait until all servers have applied the same entry and see a majority; returns its index."""

    def look() -> int | None:
        seen = [api(server).ask("GET", "/status").ok() for server in servers]
        applied = {status["applied"] for status in seen}
        whole = len(applied) == 1 and all(status["majority"] for status in seen)
        return int(applied.pop()) if whole else None

    return wait_for("all servers have applied the same", look, timeout_s=timeout_s)


def states(client: Api) -> dict[str, str]:
    """Return the state of each server, by its name, as one server sees them."""
    return {str(server["name"]): str(server["state"]) for server in client.items("servers")}


def becomes(client: Api, server: Server, state: str, *, timeout_s: float) -> None:
    """Wait until a server has a state, as another one sees it."""
    wait_for(f"{server.name} is {state}", lambda: states(client)[server.name] == state, timeout_s=timeout_s)


def standby(client: Api, *, least: int = 1, without: str = "", timeout_s: float = DESKTOP_S) -> list[Item]:
    """Wait until at least so many desktops stand by, on other servers than `without` (an id)."""

    def look() -> list[Item] | None:
        ready = [d for d in client.items("desktops") if d["state"] == "ready" and d["server"] != without]
        return ready if len(ready) >= least else None

    return wait_for(f"{least} desktops stand by", look, timeout_s=timeout_s)


def claim(client: Api, template: str, *, timeout_s: float = DESKTOP_S) -> Item:
    """Ask for a desktop until there is one, as the portal's page does."""

    def look() -> Item | None:
        answer = client.ask("POST", "/desktops", {"template": template})
        assert answer.status in (200, 201, 202), answer
        return answer.body if answer.status < 202 else None

    return wait_for("a desktop is given", look, timeout_s=timeout_s, every_s=0.5)


def version(client: Api, image: str) -> Item | None:
    """Return the newest version of an image, None if there is no such image."""
    found = [one for one in client.items("images") if one["name"] == image]
    return found[0]["versions"][-1] if found and found[0]["versions"] else None


def everywhere(client: Api, image: str, count: int, *, timeout_s: float = 60) -> Item:
    """Wait until so many servers hold the newest version of an image, and return that version."""

    def look() -> Item | None:
        found = version(client, image)
        return found if found is not None and len(found["servers"]) >= count else None

    return wait_for(f"{image} is on {count} servers", look, timeout_s=timeout_s)


def raw_file(server: Server, version_id: str) -> Path:
    """Return where a server keeps a version's raw file."""
    return server.data / "images" / f"{version_id}.raw"


def same_bytes(files: Sequence[Path]) -> bool:
    """Tell whether files are equal, by the tool that administrators would use."""
    first, *others = files
    return all(subprocess.run(["cmp", "-s", first, other], check=False).returncode == 0 for other in others)


def virsh(server: Server, *words: str) -> str:
    """Ask a server's libvirt, beside kmgr."""
    assert server.libvirt is not None
    done = subprocess.run(
        ["virsh", "-q", "-c", server.libvirt.uri, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"virsh {' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


def domains(server: Server) -> set[str]:
    """Return the ids of the desktops that have a domain on a server, running or not."""
    return {name.removeprefix("kmgr-") for name in virsh(server, "list", "--all", "--name").split()}


def overlays(server: Server) -> set[str]:
    """Return the ids of the desktops that have a linked clone on a server's disk."""
    return {file.stem for file in (server.data / "desktops").glob("*.qcow2")}


def emulator(desktop: str) -> int | None:
    """Return the process id of a desktop's QEMU, None if it does not run."""
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if (process.info["name"] or "").startswith("qemu") and f"guest=kmgr-{desktop}," in words:
            return int(process.pid)
    return None


def only_wanted_domains(server: Server, client: Api, *, timeout_s: float = 60) -> set[str]:
    """Wait until a server has exactly the domains and clones that the grid's state gives it; returns their ids."""

    def look() -> tuple[set[str]] | None:
        own = [d for d in client.items("desktops") if d["server"] == server.id]
        wanted = {d["id"] for d in own if d["state"] != "retired"}
        # One that was just placed has neither yet, and one that is retired has both: must come, must go.
        return (wanted,) if len(own) == len(wanted) and domains(server) == wanted == overlays(server) else None

    return wait_for(f"{server.name} has only the desktops it should have", look, timeout_s=timeout_s)[0]
