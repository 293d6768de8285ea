"""One server of the demonstration: a daemon, its data folder and its own libvirt.

The daemon is started as an administrator would (`kmgr init`, `join`, `run`) and
is known by a file with its process id, so that a later run, another terminal
or a test can find, kill and restart it.
"""

import hashlib
import json
import signal
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.demo.client import Client
from appliance.demo.ports import is_free
from appliance.lab import processes
from appliance.lab.node import PrivateLibvirt
from appliance.lab.processes import Known
from kmgr.errors import Refused, Unavailable

KMGR = Path(sys.executable).with_name("kmgr")
START_S = 60.0
STOP_S = 15.0
SETTLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens: host, HTTPS port, grid port."""

    host: str
    web_port: int
    grid_port: int


class Server:
    """One server under `folder`: `data` is the daemon's folder, `libvirt` its hypervisor's."""

    def __init__(self, folder: Path, name: str, *, accelerator: str = "tcg", desktops: bool = True) -> None:
        self.name = name
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self.log = self.folder / "daemon.log"
        self.accelerator = accelerator
        # Put before each command: where the daemon is to run, if not here.
        self.prefix: tuple[str, ...] = ()
        self.libvirt = PrivateLibvirt(self.folder / "libvirt", name, accelerator=accelerator) if desktops else None

    @property
    def is_formed(self) -> bool:
        """True if this server belongs to a grid already."""
        return (self.data / "identity" / "identity.json").exists()

    @property
    def id(self) -> str:
        """The id that its grid knows it by."""
        return str(self._identity()["server"])

    @property
    def portal(self) -> str:
        """`host:port` of portal, console and API."""
        return str(self._config()["web_address"])

    @property
    def grid(self) -> str:
        """`host:port` for the other servers."""
        return str(self._config()["grid_address"])

    @property
    def daemon(self) -> Known | None:
        """The daemon's process, None if it does not run."""
        return next(iter(processes.read(self.folder / "daemon.pid")), None)

    def fingerprint(self) -> str:
        """Return the SHA-256 fingerprint of the HTTPS certificate, as browsers show it."""
        der = ssl.PEM_cert_to_DER_cert((self.data / "identity" / "web.crt").read_text())
        return hashlib.sha256(der).digest().hex(":").upper()

    def client(self) -> Client:
        """Return a client of this server's API that trusts exactly this server's certificate."""
        return Client(self.portal, self.data / "identity" / "web.crt")

    # -- the two questions -----------------------------------------------------------------------------------------

    def init(self, place: Place, *, grid: str, admin: str, password: str, more: Mapping[str, object] = {}) -> None:
        """Make it the first server of a new grid."""
        words = ["init", "--data", str(self.data), "--name", self.name, "--grid", grid, "--admin", admin]
        self._kmgr([*words, "--password-file", "-", *self._sets(place, more)], stdin=password)

    def invite(self) -> str:
        """Return the four words that let one new server join."""
        return self._kmgr(["invite", "--data", str(self.data), "--plain"]).strip()

    def join(self, place: Place, *, to: str, phrase: str, more: Mapping[str, object] = {}) -> None:
        """Make it a server of the grid that answers at `to`."""
        words = ["join", "--data", str(self.data), "--name", self.name, "--to", to, "--phrase-file", "-"]
        self._kmgr([*words, *self._sets(place, more)], stdin=phrase)

    # -- the daemon ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start libvirt and the daemon and wait until the daemon answers; what runs already stays as it is."""
        if self.libvirt is not None:
            self.libvirt.start()
        if self.daemon is None:
            self._refuse_taken_ports()
            self._launch()
        self.wait_until_it_answers()

    def wait_until_it_answers(self) -> None:
        """Return when the API answers; raises with the daemon's last words if it dies or stays silent."""
        deadline = time.monotonic() + SETTLE_S
        while not self.answers():
            if self.daemon is None:
                raise Unavailable(f"the daemon of {self.name} ended: {self.last_words()}")
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.name} did not answer within {SETTLE_S:.0f} s: {self.last_words()}")
            time.sleep(0.1)

    def answers(self) -> bool:
        """True if the API answers now."""
        try:
            return self.client().ask("GET", "/status", patience_s=5).status < 500
        except OSError:
            return False

    def stop_daemon(self) -> None:
        """Stop the daemon in order; its desktops go on running."""
        if (daemon := self.daemon) is not None:
            daemon.end(STOP_S)
        (self.folder / "daemon.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop the daemon, then libvirt with its desktops."""
        self.stop_daemon()
        if self.libvirt is not None:
            self.libvirt.stop()

    def power_cut(self) -> None:
        """Kill the daemon, libvirt and all desktops at once, as a pulled plug would."""
        if (daemon := self.daemon) is not None:
            daemon.send(signal.SIGKILL)
            daemon.gone_within(STOP_S)
        if self.libvirt is not None:
            self.libvirt.power_cut()

    def last_words(self) -> str:
        """Return the end of the daemon's log, and where the rest is."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()[-3:]
        except OSError:
            lines = []
        return f"{' / '.join(lines) or 'it said nothing'} (all of it: {self.log})"

    # -- inside ----------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            child = subprocess.Popen(
                [*self.prefix, str(KMGR), "run", "--data", str(self.data)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        process = processes.known(child.pid)
        # It outlives this object on purpose and is known by its file: no warning about that.
        child.returncode = 0
        if process is None:
            raise Unavailable(f"the daemon of {self.name} ended at once: {self.last_words()}")
        processes.write(self.folder / "daemon.pid", process)

    def _sets(self, place: Place, more: Mapping[str, object]) -> list[str]:
        values = {
            "web_host": place.host,
            "web_port": place.web_port,
            "web_address": f"{place.host}:{place.web_port}",
            "grid_host": place.host,
            "grid_port": place.grid_port,
            "grid_address": f"{place.host}:{place.grid_port}",
            "libvirt_uri": self.libvirt.uri if self.libvirt is not None else "",
            "accelerator": self.accelerator,
            # All servers of a demonstration are on this machine: the network need not hear of them.
            "mdns": "false",
            **more,
        }
        return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]

    def _refuse_taken_ports(self) -> None:
        config = self._config()
        for key in ("web", "grid") if not self.prefix else ():
            host, port = str(config[f"{key}_host"]), int(config[f"{key}_port"])
            if not is_free(host, port):
                raise Refused(
                    f"port {port} is in use by another program, and {self.name} is known under it: stop that program "
                    f"(`ss -ltnp 'sport = :{port}'` names it), or begin anew with make demo-clean"
                )

    def _kmgr(self, words: list[str], *, stdin: str = "") -> str:
        done = subprocess.run(
            [*self.prefix, str(KMGR), *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
            raise Refused(f"kmgr {words[0]} for {self.name} failed: {said}")
        return done.stdout

    def _config(self) -> dict[str, Any]:
        return tomllib.loads((self.data / "kmgr.toml").read_text())

    def _identity(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.data / "identity" / "identity.json").read_text())
        return found
