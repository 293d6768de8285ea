"""A real Active Directory domain controller (Samba) in one process on a loopback address of its own.

Its ports cannot be chosen, so it needs root and an address where nobody else listens; ended by its own process id.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.lab.certificates import TestAuthority

ADDRESS = "127.0.0.61"
BASE = "DC=corp,DC=example,DC=test"
ADMIN_PASSWORD = "Passw0rd!Adm1n"
PASSWORD = "Us3r!Pass"

_PATH = "/usr/sbin:/usr/bin:/bin"
_PORTS = (389, 636, 88, 464, 135, 3268, 3269)

_CONF = """\
[global]
  netbios name = DC1
  realm = CORP.EXAMPLE.TEST
  workgroup = CORP
  server role = active directory domain controller
  private dir = {folder}/private
  state directory = {folder}/state
  cache directory = {folder}/cache
  lock directory = {folder}
  pid directory = {folder}
  ncalrpc dir = {folder}/ncalrpc
  ntp signd socket directory = {folder}/ntp_signd
  binddns dir = {folder}/bind-dns
  interfaces = {address}/8
  bind interfaces only = yes
  server services = ldap, kdc, rpc, cldap
  log file = {folder}/log.%m
  tls enabled = yes
  tls certfile = {folder}/cert.pem
  tls keyfile = {folder}/key.pem
  tls cafile = {folder}/ca.pem
  vfs objects = dfs_samba4 acl_xattr xattr_tdb
  rpc server dynamic port range = 49152-49200
"""


def missing() -> str:
    """Say why no domain controller can run here, empty if one can."""
    if shutil.which("samba-tool") is None or shutil.which("samba", path=_PATH) is None:
        return "samba is not installed (samba, samba-dsdb-modules, samba-vfs-modules, samba-ad-provision, winbind)"
    if os.geteuid() != 0:
        return "a domain controller's ports are below 1024: run as root"
    for port in _PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ADDRESS, port))
            except OSError as error:
                return f"{ADDRESS}:{port} cannot be used: {error}"
    return ""


class DomainController:
    """The domain CORP (corp.example.test), made anew in `folder`."""

    def __init__(self, folder: Path, ca: TestAuthority) -> None:
        self.folder = folder
        self.ldaps = f"ldaps://{ADDRESS}"
        self.ldap = f"ldap://{ADDRESS}"
        self._process: subprocess.Popen[bytes] | None = None
        self._provision(ca)

    def tool(self, *words: str) -> None:
        """Run samba-tool on the domain's own files; the server may be running."""
        command = ["samba-tool", *words, "-s", str(self.folder / "ad.conf")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def start(self) -> None:
        """Start it and wait until LDAPS answers."""
        with (self.folder / "out").open("ab") as out:
            command = ["samba", "-i", "-M", "single", "-s", str(self.folder / "ad.conf")]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, "PATH": _PATH}
            )
        for _ in range(200):
            if self._process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex((ADDRESS, 636)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"samba does not answer: {(self.folder / 'out').read_text()}")

    def stop(self) -> None:
        """End it; safe to call twice."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
            self._process = None

    def _provision(self, ca: TestAuthority) -> None:
        command = [
            *("samba-tool", "domain", "provision", f"--targetdir={self.folder}", "--realm=CORP.EXAMPLE.TEST"),
            *("--domain=CORP", "--server-role=dc", "--dns-backend=SAMBA_INTERNAL", f"--adminpass={ADMIN_PASSWORD}"),
            *("--host-name=dc1", f"--host-ip={ADDRESS}", f"--option=interfaces={ADDRESS}/8"),
            *("--option=bind interfaces only=yes", "--option=vfs objects=dfs_samba4 acl_xattr xattr_tdb"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        cert, key = ca.issue(ADDRESS, "dc1.corp.example.test")
        for name, text in (("cert.pem", cert), ("key.pem", key), ("ca.pem", ca.cert_pem)):
            path = self.folder / name
            path.write_text(text)
            path.chmod(0o600)
        (self.folder / "ad.conf").write_text(_CONF.format(folder=self.folder, address=ADDRESS))
