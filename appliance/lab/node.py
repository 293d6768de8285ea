"""One private libvirt daemon: what a server of its own would have, on a machine that plays several.

Each runs in its own mount, process and host-name namespaces, with its own
`/etc/libvirt`, `/run/libvirt`, `/var/lib/libvirt`, so that domains, sockets and
sudden death of one are none of the others' business. The network is shared:
portals and user-mode networking of desktops work as on the machine itself.

Needs root (CAP_SYS_ADMIN), no systemd. Everything blocks, with a time limit; call
it from a thread in asyncio code. What was started is found again after a crash of
the starter through `server.pid`, so that `stop()` always leaves nothing behind.
"""

import contextlib
import hashlib
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from appliance.lab import processes
from appliance.lab.processes import Known
from kmgr.errors import Unavailable

INIT = Path(__file__).with_name("server-init.sh")
CAPABILITIES = Path(__file__).parents[2] / "build" / "lab" / "capabilities"
SHORT_RUN = Path("/run/kmgr-lab")

# The kernel takes 107 bytes for the path of a unix socket; libvirt's longest name here has 25.
LONGEST_RUN_FOLDER = 80

START_S = 60.0
STOP_S = 15.0

QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
seccomp_sandbox = 0
stdio_handler = "file"
"""

LIBVIRTD_CONF = """\
auth_unix_rw = "none"
auth_unix_ro = "none"
listen_tls = 0
host_uuid = "{uuid}"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
log_filters = "3:object 3:util 3:event 2:qemu"
keepalive_interval = -1
"""


class PrivateLibvirt:
    """A libvirt daemon of its own under `folder`; `name` is the host name it sees."""

    def __init__(self, folder: Path, name: str, *, accelerator: str = "tcg") -> None:
        self.folder = folder.absolute()
        self.name = name
        self._accelerator = accelerator
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Where libvirt clients of this machine connect to."""
        return f"qemu+unix:///system?socket={self._run_folder() / 'libvirt-sock'}"

    @property
    def log(self) -> Path:
        """What libvirtd writes; the file to look at when something here fails."""
        return self.folder / "log" / "libvirtd.log"

    @property
    def is_running(self) -> bool:
        """True while the namespace lives (libvirtd itself may be stopped)."""
        return self._init() is not None

    def start(self) -> None:
        """Start it and wait until it answers; does nothing if it answers already."""
        if self._init() is None:
            self._prepare()
            self._launch()
        elif not self.answers():
            self.start_libvirtd()
            return
        self._wait("libvirtd answers", self.answers, START_S)
        self._share_capabilities()

    def stop(self) -> None:
        """Stop libvirtd in order, then whatever still runs; leaves no process, mount or socket behind."""
        if self._init() is not None:
            with contextlib.suppress(Unavailable):
                self.stop_libvirtd()
        self.power_cut()

    def power_cut(self) -> None:
        """Kill libvirtd and every desktop at once, as a pulled plug would."""
        init = self._init()
        outer = self._outer()
        for process in (init, outer):
            if process is not None:
                process.send(signal.SIGKILL)
        if self._child is not None:
            self._child.wait(STOP_S)
            self._child = None
        if init is not None and not init.gone_within(STOP_S):
            raise Unavailable(f"libvirt of {self.name}: process {init.pid} does not go away, see dmesg")
        (self.folder / "server.pid").unlink(missing_ok=True)
        self._drop_run_folder()

    def stop_libvirtd(self) -> None:
        """Stop only libvirtd; desktops go on running."""
        self._signal(signal.SIGUSR2)
        self._wait("libvirtd has stopped", lambda: self._libvirtd() is None, STOP_S)

    def start_libvirtd(self) -> None:
        """Start libvirtd again after `stop_libvirtd`."""
        self._signal(signal.SIGUSR1)
        self._wait("libvirtd answers", self.answers, START_S)

    def restart_libvirtd(self) -> None:
        """Restart only libvirtd; desktops go on running."""
        self.stop_libvirtd()
        self.start_libvirtd()

    def answers(self) -> bool:
        """True if libvirtd answers now."""
        if self._libvirtd() is None:
            return False
        try:
            asked = subprocess.run(
                ["virsh", "-q", "-c", self.uri, "list", "--name"], capture_output=True, timeout=START_S, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return asked.returncode == 0

    # -- folders ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        for tool in ("libvirtd", "virsh", "unshare", "qemu-system-x86_64"):
            if shutil.which(tool) is None:
                raise Unavailable(f"{tool} is not installed on this machine: run make setup")
        for part in ("etc/qemu/networks", "lib", "log", "cache/qemu"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        # As after a boot: libvirt must not believe in process ids of its former life.
        self._drop_run_folder()
        run = self._run_folder()
        run.mkdir(parents=True)
        if run.parent != self.folder:
            (self.folder / "run").symlink_to(run)
        identity = self.folder / "uuid"
        if not identity.exists():
            identity.write_text(str(uuid.uuid4()))
        (self.folder / "etc" / "qemu.conf").write_text(QEMU_CONF)
        (self.folder / "etc" / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(uuid=identity.read_text()))
        # A host name that nobody resolves costs libvirt ten seconds at a time.
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        if CAPABILITIES.is_dir():
            _copy_missing(CAPABILITIES, self.folder / "cache" / "qemu" / "capabilities")

    def _run_folder(self) -> Path:
        own = self.folder / "run"
        if len(str(own).encode()) <= LONGEST_RUN_FOLDER:
            return own
        return SHORT_RUN / hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]

    def _drop_run_folder(self) -> None:
        run = self._run_folder()
        shutil.rmtree(run, ignore_errors=True)
        if run.parent != self.folder:
            (self.folder / "run").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                SHORT_RUN.rmdir()

    def _share_capabilities(self) -> None:
        """Keep what libvirt found out about QEMU: probing costs seconds, for each new daemon."""
        found = self.folder / "cache" / "qemu" / "capabilities"
        if not found.is_dir():
            kind = "kvm" if self._accelerator == "kvm" else "qemu"
            probe = ["virsh", "-q", "-c", self.uri, "domcapabilities", "--virttype", kind]
            subprocess.run(probe, capture_output=True, timeout=START_S, check=False)
        if found.is_dir():
            _copy_missing(found, CAPABILITIES)

    # -- processes -------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        command = [
            "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
            "bash", str(INIT), str(self.folder), self.name, self._accelerator,
        ]  # fmt: skip
        with (self.folder / "log" / "init.log").open("wb") as out:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        outer = processes.known(self._child.pid)
        if outer is not None:
            self._wait("its namespace exists", lambda: bool(processes.children(outer)), STOP_S)
            processes.write(self.folder / "server.pid", outer, processes.children(outer)[0])

    def _outer(self) -> Known | None:
        return next(iter(self._recorded()), None)

    def _init(self) -> Known | None:
        return next(iter(self._recorded()[1:]), None)

    def _recorded(self) -> list[Known | None]:
        """Return what we started, if it still lives: first unshare, then the first process inside."""
        return processes.read(self.folder / "server.pid")

    def _libvirtd(self) -> Known | None:
        init = self._init()
        inside = [] if init is None else processes.children(init)
        return next((child for child in inside if processes.name_of(child) == "libvirtd"), None)

    def _signal(self, number: signal.Signals) -> None:
        init = self._init()
        if init is None:
            raise Unavailable(f"the libvirt of {self.name} does not run: start it first")
        init.send(number)

    def _wait(self, what: str, look: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not look():
            died = self._child is not None and self._child.poll() is not None
            if died or time.monotonic() > deadline:
                why = "it ended" if died else f"not within {limit_s:.0f} s"
                raise Unavailable(f"libvirt of {self.name}: waited until {what}, but {why}. {self._last_words()}")
            time.sleep(0.02)

    def _last_words(self) -> str:
        for path in (self.folder / "log" / "init.log", self.log):
            with contextlib.suppress(OSError):
                if lines := path.read_text(errors="replace").strip().splitlines():
                    return f"It said: {lines[-1]} (all of it: {path})"
        return "It said nothing: are you root, and may this container make namespaces?"


def _copy_missing(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.xml"):
        if not (target / file.name).exists():
            # Two daemons may learn the same thing at once: the file appears whole or not at all.
            part = target / f".{file.name}.{uuid.uuid4().hex}"
            shutil.copy2(file, part)
            part.rename(target / file.name)
