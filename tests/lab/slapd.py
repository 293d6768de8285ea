"""A real OpenLDAP server on high loopback ports, with its own data folder; ended by its own process id."""

import base64
import hashlib
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.lab.certificates import TestAuthority

BASE = "dc=example,dc=org"
SLAPD = shutil.which("slapd", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/libexec")

_CONF = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/nis.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
moduleload ppolicy
pidfile {folder}/slapd.pid
argsfile {folder}/slapd.args
{tls}
sizelimit size.soft=100 size.hard=1000 size.pr={pages} size.prtotal=unlimited
database mdb
maxsize 104857600
suffix "dc=example,dc=org"
rootdn "cn=admin,dc=example,dc=org"
directory {folder}/db
index objectClass,uid,member eq
overlay memberof
memberof-group-oc groupOfNames
overlay ppolicy
ppolicy_default "cn=policy,dc=example,dc=org"
access to attrs=userPassword by anonymous auth by * none
access to * by users read by * none
"""
_TLS = """\
TLSCertificateFile {folder}/cert.pem
TLSCertificateKeyFile {folder}/key.pem
security simple_bind=128
"""


class Slapd:
    """One server. `tls=False` makes one that knows no StartTLS; it answers at `.ldap` only.

    It gives 100 entries at once, and at most `pages` entries a page.
    """

    def __init__(self, folder: Path, ldif: str, *, ca: TestAuthority, tls: bool = True, pages: int = 100) -> None:
        host = "127.0.0.1"
        self.folder = folder
        self._ca = ca
        self._tls = tls
        self._pages = pages
        self._ldif = ldif
        self.ldap = f"ldap://{host}:{free_port(host)}"
        self.ldaps = f"ldaps://{host}:{free_port(host)}"
        # The same server under an address that its certificate does not name.
        self.elsewhere = f"ldaps://127.0.0.2:{free_port('127.0.0.2')}"
        self._process: subprocess.Popen[bytes] | None = None
        self._prepare(host)

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert SLAPD is not None
        urls = f"{self.ldap}/ {self.ldaps}/ {self.elsewhere}/" if self._tls else f"{self.ldap}/"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [SLAPD, "-f", str(self.folder / "slapd.conf"), "-h", urls, "-d", "0"], stdout=log, stderr=log
            )
        host, port = self.ldap.removeprefix("ldap://").rsplit(":", 1)
        for _ in range(200):
            if self._process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"slapd does not answer: {(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        """End it; safe to call twice."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def _prepare(self, host: str) -> None:
        assert SLAPD is not None
        (self.folder / "db").mkdir(parents=True)
        cert, key = self._ca.issue(host, "localhost")
        (self.folder / "cert.pem").write_text(cert)
        (self.folder / "key.pem").write_text(key)
        tls = _TLS.format(folder=self.folder) if self._tls else ""
        (self.folder / "slapd.conf").write_text(_CONF.format(folder=self.folder, tls=tls, pages=self._pages))
        (self.folder / "people.ldif").write_text(self._ldif)
        command = [SLAPD, "-Tadd", "-q", "-f", f"{self.folder}/slapd.conf", "-l", f"{self.folder}/people.ldif"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def tree() -> str:
    """Return the LDIF of the base with places for people and groups and a policy of passwords."""
    return (
        f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: Example\n\n"
        + "".join(f"dn: ou={ou},{BASE}\nobjectClass: organizationalUnit\nou: {ou}\n\n" for ou in ("people", "groups"))
        + f"dn: cn=policy,{BASE}\nobjectClass: device\nobjectClass: pwdPolicy\ncn: policy\n"
        "pwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: 20\n\n"
    )


def person(uid: str, shown: str, password: str, *, extra: str = "") -> str:
    """Return the LDIF of a person."""
    salt = b"salt"
    digest = base64.b64encode(hashlib.sha1(password.encode() + salt).digest() + salt).decode()  # noqa: S324 - {SSHA}
    encoded = base64.b64encode(shown.encode()).decode()
    uid64 = base64.b64encode(uid.encode()).decode()
    return (
        f"dn: {person_dn(uid)}\nobjectClass: inetOrgPerson\nuid:: {uid64}\ncn:: {encoded}\nsn: x\n"
        f"displayName:: {encoded}\nuserPassword: {{SSHA}}{digest}\n{extra}\n"
    )


def person_dn(uid: str) -> str:
    """Return a person's DN."""
    return f"uid={uid},ou=people,{BASE}"


def group(cn: str, *members: str) -> str:
    """Return the LDIF of a group whose members are DNs."""
    lines = "".join(f"member: {member}\n" for member in members)
    return f"dn: {group_dn(cn)}\nobjectClass: groupOfNames\ncn: {cn}\n{lines}\n"


def posix_group(cn: str, *uids: str) -> str:
    """Return the LDIF of a group of the older kind, whose members are log-in names."""
    lines = "".join(f"memberUid: {uid}\n" for uid in uids)
    return f"dn: {group_dn(cn)}\nobjectClass: posixGroup\ncn: {cn}\ngidNumber: 7000\n{lines}\n"


def group_dn(cn: str) -> str:
    """Return a group's DN."""
    return f"cn={cn},ou=groups,{BASE}"


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
