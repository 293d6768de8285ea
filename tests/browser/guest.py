"""Ask a guest through its agent, beside kmgr: the proof that what a browser typed arrived."""

import base64
import json
import socket
import subprocess
import time
from typing import Any


class GuestAgent:
    """The guest agent of one domain, spoken to through libvirt's own command line tool."""

    def __init__(self, libvirt_uri: str, domain: str) -> None:
        self._command = ["virsh", "-c", libvirt_uri, "qemu-agent-command", domain, "--timeout", "10"]

    def ask(self, execute: str, **arguments: Any) -> Any:
        """Send one agent command and return its answer."""
        request = json.dumps({"execute": execute, "arguments": arguments})
        done = subprocess.run([*self._command, request], capture_output=True, text=True, timeout=20, check=True)
        return json.loads(done.stdout)["return"]

    def run(self, *argv: str, timeout_s: float = 20) -> str:
        """Run a program in the guest and return what it printed."""
        pid = self.ask("guest-exec", path=argv[0], arg=list(argv[1:]), **{"capture-output": True})["pid"]
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.ask("guest-exec-status", pid=pid)
            if status["exited"]:
                return base64.b64decode(status.get("out-data", "")).decode(errors="replace")
            time.sleep(0.2)
        raise TimeoutError(f"{argv[0]} in the guest did not end within {timeout_s} s")

    def read(self, path: str) -> str:
        """Return a file of the guest."""
        return self.run("/bin/cat", path)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
