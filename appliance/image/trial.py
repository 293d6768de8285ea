"""Boot the appliance in QEMU and answer its two questions over HTTPS. `python -m appliance.image.trial [IMAGE]`.

Works on a throw-away overlay: the image stays as it was built. Prints how long
each step took; ends with status 0 only if the wizard made a grid of one server
and its administrator can log in.
"""

import http.client
import json
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.image.appliance import BUILD
from kmgr.errors import KmgrError, Unavailable

BOOT_S = 300.0
SETTLE_S = 120.0
ASK_S = 10.0
ANSWERS = {"grid": {"name": "trial"}, "server": {"name": "trial-one"}, "admin": {"name": "admin"}}


def main() -> int:
    """Run the trial; errors become one sentence, with the console's last lines."""
    image = Path(sys.argv[1]) if len(sys.argv) > 1 else BUILD / "kmgr-appliance.qcow2"
    if not image.exists():
        print(f"appliance-test: {image} is not there: run make appliance first", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="kmgr-trial-") as folder:
        trial = Trial(image.absolute(), Path(folder))
        try:
            trial.run()
        except (KmgrError, OSError) as error:
            print(f"appliance-test: {error}\n\nThe console's last lines:\n{trial.console()}", file=sys.stderr)
            return 1
        finally:
            trial.stop()
    return 0


class Trial:
    """One boot of the appliance on an overlay."""

    def __init__(self, image: Path, folder: Path) -> None:
        self._image = image
        self._folder = folder
        self._port = _free_port()
        self._began = time.monotonic()
        self._machine: subprocess.Popen[bytes] | None = None
        self._token = ""

    def run(self) -> None:
        """Boot, answer, log in; each step is timed."""
        password = secrets.token_urlsafe(12)
        self._boot()
        self._wait("the wizard answers", lambda: self._ask("GET", "/setup")[0] == 200, BOOT_S)
        answers = {**ANSWERS, "admin": {**ANSWERS["admin"], "password": password}}
        # Keys are made and the password is hashed, in an emulated machine.
        status, body = self._ask("POST", "/api/v1/setup", answers, patience_s=SETTLE_S)
        if status >= 300:
            raise Unavailable(f"the wizard refused the answers with {status}: {body}")
        self._say("the two questions are answered")
        self._wait("the grid of one server runs", self._is_member, SETTLE_S)
        self._wait("the administrator is logged in", lambda: self._log_in(password), SETTLE_S)
        servers = self._ask("GET", "/api/v1/servers")[1]["items"]
        self._say("its servers: " + ", ".join(f"{item['name']} ({item['state']})" for item in servers))

    def console(self) -> str:
        """Return the last lines of the serial console."""
        try:
            return "\n".join((self._folder / "serial").read_text(errors="replace").splitlines()[-20:])
        except OSError:
            return "(nothing)"

    def stop(self) -> None:
        """Switch the machine off."""
        if self._machine is not None:
            self._machine.kill()
            self._machine.wait()

    def _boot(self) -> None:
        overlay = self._folder / "overlay.qcow2"
        create = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            str(self._image),
            "-F",
            "qcow2",
            str(overlay),
            "8G",
        ]
        subprocess.run(create, check=True, capture_output=True)
        self._machine = subprocess.Popen(
            [
                "qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "2048",
                "-drive", f"file={overlay},if=virtio", "-display", "none",
                "-serial", f"file:{self._folder / 'serial'}",
                "-nic", f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{self._port}-:443",
                "-qmp", f"unix:{self._folder / 'qmp'},server=on,wait=off",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def _is_member(self) -> bool:
        status, body = self._ask("GET", "/api/v1/status")
        return status == 200 and bool(body.get("majority"))

    def _log_in(self, password: str) -> bool:
        status, body = self._ask("POST", "/api/v1/sessions", {"user": "admin", "password": password})
        if status < 300:
            self._token = body["token"]
        return status < 300

    def _ask(self, method: str, path: str, body: Any = None, *, patience_s: float = ASK_S) -> tuple[int, Any]:
        # The certificate was made a moment ago inside the machine; its console shows the fingerprint to compare.
        tls = ssl.create_default_context()
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=patience_s, context=tls)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"}
        if not self._token:
            del headers["Authorization"]
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text.decode(errors="replace")[:300]

    def _wait(self, what: str, look: Callable[[], bool], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        last = ""
        while time.monotonic() < deadline:
            if self._machine is not None and self._machine.poll() is not None:
                raise Unavailable(f"QEMU ended with status {self._machine.returncode}")
            try:
                if look():
                    self._say(what)
                    return
            except (OSError, http.client.HTTPException) as error:
                last = str(error)
            time.sleep(0.5)
        raise Unavailable(f"waited until {what}, but not within {limit_s:.0f} s ({last})")

    def _say(self, what: str) -> None:
        print(f"[{time.monotonic() - self._began:5.1f} s] {what}", flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    sys.exit(main())
