"""A daemon that belongs to no grid yet, or must not start: `kmgr run` on a folder of its own, without libvirt."""

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from tests.lab.api import Api, wait_for

KMGR = Path(sys.executable).with_name("kmgr")


def kmgr(*words: str, stdin: str = "", timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a `kmgr` command to its end, whatever that is."""
    return subprocess.run(
        [str(KMGR), *words], input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def sets(web_port: int, grid_port: int, **more: object) -> list[str]:
    """Return `--set` options for a server on loopback that runs no desktops."""
    values = {
        "web_host": "127.0.0.1",
        "web_port": web_port,
        "grid_host": "127.0.0.1",
        "grid_port": grid_port,
        "libvirt_uri": "",
        "mdns": "false",
        **more,
    }
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


class Daemon:
    """One `kmgr run`; ended by its own process, never by a name."""

    def __init__(self, data: Path, values: Mapping[str, object] | None = None) -> None:
        self.data = data
        self._child: subprocess.Popen[bytes] | None = None
        if values is not None:
            data.mkdir(parents=True)
            lines = [f"{key} = {_toml(value)}\n" for key, value in values.items()]
            (data / "kmgr.toml").write_text("".join(lines))

    @property
    def api(self) -> Api:
        """A client of its API."""
        config = tomllib.loads((self.data / "kmgr.toml").read_text())
        return Api(f"127.0.0.1:{config['web_port']}")

    @property
    def log(self) -> str:
        """What it has said so far."""
        path = self.data.with_suffix(".log")
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it; returns when something answers at its HTTPS port, as a grid's server or as the wizard."""
        with self.data.with_suffix(".log").open("ab") as out:
            self._child = subprocess.Popen(
                [str(KMGR), "run", "--data", str(self.data)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        wait_for("the daemon answers", self._answers, timeout_s=30, every_s=0.1)

    def stop(self) -> int:
        """Stop it in order and return its exit status."""
        assert self._child is not None
        self._child.terminate()
        try:
            return self._child.wait(15)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait(15)

    def kill(self) -> None:
        """Kill it as the kernel would for want of memory."""
        assert self._child is not None
        self._child.kill()
        self._child.wait(15)

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._child is not None and self._child.poll() is None

    def _answers(self) -> bool:
        assert self.alive, f"the daemon ended: {self.log[-2000:]}"
        return self.api.ask("GET", "/status").status > 0


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int) else f'"{value}"'
