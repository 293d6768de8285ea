"""A grid of whole servers on this machine, for the demonstration and for tests alike.

Everything lies under one folder, so that a second `start()` on the same folder
goes on where the first ended, and `stop()` in another process works as well.
Blocking; nothing here knows what the grid is used for.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.demo.client import Client
from appliance.demo.ports import next_free
from appliance.demo.server import Place, Server
from kmgr.errors import KmgrError, Unavailable

NAMES = ("one", "two", "three")
ADMIN = "admin"
SETTLE_S = 60.0


class Cluster:
    """Servers under `folder`; the first one founds the grid, the others join it through an invitation."""

    def __init__(
        self,
        folder: Path,
        *,
        names: Sequence[str] = NAMES,
        grid: str = "demo",
        host: str = "127.0.0.1",
        web_port: int = 8443,
        grid_port: int = 8451,
        accelerator: str = "tcg",
        desktops: bool = True,
        more: Mapping[str, object] = {},
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder = folder.absolute()
        self.grid = grid
        self.servers = [
            Server(self.folder / name, name, accelerator=accelerator, desktops=desktops) for name in names
        ]
        self._host = host
        self._ports = (web_port, grid_port)
        self._more = more
        self._say = say

    @property
    def accounts(self) -> Path:
        """The file with the generated passwords."""
        return self.folder / "accounts.json"

    def server(self, name: str) -> Server:
        """Return a server by its name."""
        return next(server for server in self.servers if server.name == name)

    def password(self, account: str) -> str:
        """Return the password of an account, generated when it is first asked for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known: dict[str, str] = json.loads(self.accounts.read_text()) if self.accounts.exists() else {}
        if account not in known:
            known[account] = "-".join(secrets.token_hex(2) for _ in range(4))
            self.accounts.touch(mode=0o600)
            self.accounts.write_text(json.dumps(known, indent=1))
        return known[account]

    def start(self) -> None:
        """Start every server and make those join that have not yet; returns when all are up in the eyes of all."""
        first, *others = self.servers
        places = self._places()
        if not first.is_formed:
            first.init(
                places[first.name], grid=self.grid, admin=ADMIN, password=self.password(ADMIN), more=self._more
            )
            self._say(f"grid {self.grid!r} made by server {first.name}")
        self._start_all([server for server in self.servers if server.is_formed])
        for server in others:
            if not server.is_formed:
                server.join(places[server.name], to=first.grid, phrase=first.invite(), more=self._more)
                server.start()
                self._say(f"{server.name} joined and runs: https://{server.portal}/")
        self._wait("each sees all others up", self._all_up)

    def stop(self) -> None:
        """Stop all daemons, then all libvirts with their desktops."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            # Reading every result raises what any of them raised, after all were tried.
            stops = [pool.submit(server.stop) for server in self.servers]
        for stop in stops:
            stop.result()

    def admin(self, server: Server | None = None) -> Client:
        """Return a client that is logged in as the administrator, at the first server that answers or at `server`."""
        for candidate in [server] if server is not None else self.servers:
            if candidate.daemon is not None:
                return candidate.client().log_in(ADMIN, self.password(ADMIN))
        raise Unavailable("no server of this grid runs: start one")

    def _start_all(self, servers: Sequence[Server]) -> None:
        # A server needs a majority to be of much use, so all start before any is waited for.
        with ThreadPoolExecutor(len(self.servers)) as pool:
            for server, started in [(server, pool.submit(server.start)) for server in servers]:
                try:
                    started.result()
                except KmgrError as error:
                    raise Unavailable(f"server {server.name} does not start: {error.message}") from error
                self._say(f"{server.name} runs: https://{server.portal}/")
        self._wait("a leader is elected", lambda: all(_majority(server) for server in servers))

    def _all_up(self) -> bool:
        for server in self.servers:
            client = server.client().log_in(ADMIN, self.password(ADMIN))
            seen = {str(item["name"]): item["state"] for item in client.items("servers")}
            client.ask("DELETE", "/sessions/current")
            if not all(seen.get(one.name) in ("up", "draining") for one in self.servers):
                return False
        return True

    def _wait(self, what: str, look: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SETTLE_S
        why = "it is not so yet"
        while time.monotonic() < deadline:
            try:
                if look():
                    return
            except (KmgrError, OSError) as error:
                why = str(error)
            time.sleep(0.3)
        raise Unavailable(
            f"waited {SETTLE_S:.0f} s until {what}: {why}. The servers' logs: {self.folder}/*/daemon.log"
        )

    def _places(self) -> dict[str, Place]:
        """Choose ports for servers that have none yet; a port that is taken is passed over, and that is said."""
        taken: set[int] = set()
        for server in self.servers:
            if server.is_formed:
                taken |= {int(address.rpartition(":")[2]) for address in (server.portal, server.grid)}
        places: dict[str, Place] = {}
        for number, server in enumerate(self.servers):
            if server.is_formed:
                continue
            chosen = []
            for wanted in (self._ports[0] + number, self._ports[1] + number):
                port = next_free(self._host, wanted, taken)
                taken.add(port)
                chosen.append(port)
                if port != wanted:
                    self._say(f"port {wanted} is taken: {server.name} uses {port}")
            places[server.name] = Place(self._host, *chosen)
        return places


def _majority(server: Server) -> bool:
    return bool(server.client().ask("GET", "/status", patience_s=5).ok()["majority"])
