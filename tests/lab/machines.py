"""Machines on which the lines of `docs/operating.md` are typed: data folders, ports of their own, real daemons."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil

from tests.lab.api import Api
from tests.lab.daemons import kmgr, sets
from tests.lab.ports import port

KMGR = Path(sys.executable).with_name("kmgr")
PASSWORD = "a-long-password-1"
NOBODY = 65534
PORT = 450
_WORDS = re.compile(r"^ {4}([a-z]+(?:[ -][a-z]+){3})$", re.MULTILINE)


class Machine:
    """One machine: what is typed on it runs against its own data folder. A witness runs as nobody."""

    def __init__(self, folder: Path, name: str, taken: set[int]) -> None:
        self.name = name
        self.data = folder / name
        self.web, self.grid = port(PORT, taken), port(PORT + 10, taken)
        taken |= {self.web, self.grid}
        self.is_witness = name == "w"
        self.daemon: subprocess.Popen[bytes] | None = None

    @property
    def api(self) -> Api:
        """A client of its API, nobody logged in."""
        return Api(f"127.0.0.1:{self.web}")

    @property
    def log(self) -> str:
        """What its daemon has said so far."""
        path = self.data.with_suffix(".log")
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def rss_mib(self) -> float:
        """The memory of its daemon."""
        assert self.daemon is not None
        return psutil.Process(self.daemon.pid).memory_info().rss / (1 << 20)

    def start(self) -> None:
        """Start its service and wait until that says that it is ready."""
        seen = len(self.log)
        words = ["witness", "run"] if self.is_witness else ["run"]
        with self.data.with_suffix(".log").open("ab") as out:
            self.daemon = subprocess.Popen(
                [str(KMGR), *words, "--data", str(self.data)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                user=NOBODY if self.is_witness else None, group=NOBODY if self.is_witness else None,
                extra_groups=[] if self.is_witness else None,
            )  # fmt: skip
        for _ in range(300):
            if "ready" in self.log[seen:] or self.daemon.poll() is not None:
                break
            self._wait(0.1)
        assert "ready" in self.log[seen:], self.log[-2000:]

    def stop(self) -> None:
        """Stop its service in order."""
        self._end(kill=False)

    def power_off(self) -> None:
        """Pull its plug."""
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        if self.daemon is not None:
            (self.daemon.kill if kill else self.daemon.terminate)()
            self.daemon.wait(20)
            self.daemon = None

    def _wait(self, seconds: float) -> None:
        assert self.daemon is not None
        try:
            self.daemon.wait(seconds)
        except subprocess.TimeoutExpired:
            return


class Room:
    """All machines, made when something is first typed on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines: dict[str, Machine] = {}
        self.said = ""
        self._taken: set[int] = set()
        self._words = ""
        self._token = ""

    def __getitem__(self, name: str) -> Machine:
        if name not in self.machines:
            self.machines[name] = Machine(self.folder, name, self._taken)
        return self.machines[name]

    def type(self, name: str, line: str) -> None:
        """Do what a line of the page says; `said` is what it printed."""
        machine = self[name]
        words = shlex.split(line)
        if words[:1] == ["runuser"]:
            words = words[words.index("--") + 1 :]
        match words:
            case ["poweroff"]:
                machine.power_off()
            case ["editor", _]:
                self._move(machine)
            case ["systemctl", "start", _]:
                machine.start()
            case ["systemctl", "stop" | "disable", _]:
                machine.stop()
            case ["systemctl", "restart", _]:
                machine.stop()
                machine.start()
            case ["cp" | "mv" | "ln" | "rm", *_]:
                subprocess.run([self._there(machine, word) for word in words], check=True)
            case ["kmgr", *rest]:
                self._kmgr(machine, rest)
            case _:
                raise AssertionError(f"the test does not know how to type {line!r}")

    def admin(self, name: str) -> Api:
        """Return the administrator's client at one machine; a log-in holds on all of them."""
        client = self[name].api
        client.token = self._token
        if client.ask("GET", "/servers").status != 200:
            self._token = client.log_in("admin", PASSWORD).token
        return client

    def close(self) -> None:
        """End every daemon that was started."""
        for machine in self.machines.values():
            machine.power_off()

    def _kmgr(self, machine: Machine, words: list[str]) -> None:
        words = [self._here(word) for word in words]
        if words[0] in ("init", "join") or words[:2] in (["witness", "join"], ["grid", "restore"]):
            words += sets(machine.web, machine.grid)
        words += ["--data", str(machine.data)]
        answers = {"init": f"{PASSWORD}\n{PASSWORD}\n", "reset": "reset\n", "grid": "office\n"}
        done = kmgr(*words, stdin=answers.get(words[0], f"{self._words}\n"))
        self.said = done.stdout + done.stderr
        assert done.returncode == 0, f"{machine.name}# kmgr {shlex.join(words)}: {self.said}"
        if (found := _WORDS.search(done.stdout)) is not None:
            self._words = found.group(1)
        if machine.is_witness:
            for path in (machine.data, *machine.data.rglob("*")):
                subprocess.run(["chown", f"{NOBODY}:{NOBODY}", path], check=True)

    def _there(self, machine: Machine, word: str) -> str:
        """Put this machine's folders in place of the page's."""
        big = self.folder / f"{machine.name}-big"
        big.mkdir(exist_ok=True, mode=0o711)
        return word.replace("/var/lib/kmgr", str(machine.data)).replace("/mnt/big", str(big))

    def _here(self, word: str) -> str:
        """Put this machine's ports and folders in place of the page's."""
        if word.endswith(":8440"):
            return f"127.0.0.1:{self[word.removesuffix(':8440')].grid}"
        return str(self.folder / Path(word).name) if word.startswith("/root/") else word

    def _move(self, machine: Machine) -> None:
        path = machine.data / "kmgr.toml"
        new = port(PORT + 20, self._taken)
        text = path.read_text().replace(f"grid_port = {machine.grid}", f"grid_port = {new}")
        path.write_text(text)
        assert tomllib.loads(text)["grid_port"] == new
        machine.grid = new
        self._taken.add(new)
