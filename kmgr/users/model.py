"""People as records: accounts, assignments, sessions, and verdicts with their reasons.

Pure: no I/O, no clock.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from kmgr.ids import AccountName, ServerId, TemplateId

# Where a person comes from who has a built-in account.
BUILT_IN = "built-in"

_URL = re.compile(r"ldaps?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[1-9][0-9]{0,4})?/?")


class Role(StrEnum):
    """What a person may do besides using desktops."""

    USER = "user"
    ADMIN = "admin"


class SubjectKind(StrEnum):
    """To whom a template is assigned."""

    EVERYONE = "everyone"
    GROUP = "group"
    USER = "user"


@dataclass(frozen=True, slots=True)
class Account:
    """A built-in account. `password_hash` is Argon2id in PHC form and never leaves the server."""

    name: AccountName
    display_name: str
    role: Role
    groups: tuple[str, ...]
    disabled: bool
    password_hash: str
    created_at: int
    changed_at: int


@dataclass(frozen=True, slots=True)
class Person:
    """Who a directory says this is. `source` names the directory ("built-in" or its URL)."""

    name: AccountName
    display_name: str
    groups: tuple[str, ...]
    role: Role
    source: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """A user, a group or everyone may use a template. `subject` is empty for everyone."""

    template: TemplateId
    kind: SubjectKind
    subject: str


@dataclass(frozen=True, slots=True)
class Session:
    """A person's log-in, valid at every server until `expires_at` (ms). `hash` is of the token, which is not kept."""

    hash: str
    person: Person
    address: str
    server: ServerId
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """May they or not, and why: for the audit log and the admin's "why?"."""

    allowed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class DirectoryConfig:
    """How to ask an LDAP or AD directory.

    `urls` are tried in order. `bind_name` says how a person binds, with `{name}` for what they typed
    (`{name}@corp.example`, or `uid={name},ou=people,dc=…`); `user_filter` finds their entry below `base_dn`.
    `ca_pem` is the certificate that signs the servers' ones (empty: the machine's own list). Members of
    `admin_group` administer the grid.
    """

    id: str
    urls: tuple[str, ...]
    base_dn: str
    user_filter: str
    bind_name: str
    ca_pem: str
    start_tls: bool
    admin_group: str


def normalised(name: str) -> str:
    """Return a name as people and groups are compared: no blanks around, small letters, without `DOMAIN\\`."""
    return name.strip().rpartition("\\")[2].casefold()


def problem_of(config: DirectoryConfig) -> str:
    """Say what is wrong with a directory's settings and what to do, empty if nothing is."""
    if not config.id.strip() or len(config.id) > 63 or config.id == BUILT_IN:
        return f"{config.id!r} cannot be a directory's name: choose 1 to 63 characters, and not {BUILT_IN!r}"
    wrong = [url for url in config.urls if not _URL.fullmatch(url) or _port(url) > 65_535]
    if wrong or not config.urls:
        told = f", not {wrong[0]!r}" if wrong else ""
        return f"a directory needs addresses like ldaps://dc1.corp.example or ldap://10.0.0.5:389{told}"
    if any(url.startswith("ldap://") for url in config.urls) and not config.start_tls:
        return "ldap:// without StartTLS would send passwords in the clear: turn StartTLS on, or use ldaps://"
    if not config.base_dn.strip():
        return "say below which entry people and groups are (base DN), for example dc=corp,dc=example"
    if "{name}" not in config.bind_name or "{name}" not in config.user_filter:
        return "bind name and user filter must contain {name}, which stands for who logs in"
    if config.ca_pem.strip() and "-----BEGIN CERTIFICATE-----" not in config.ca_pem:
        return "the certificate must be PEM text that begins with -----BEGIN CERTIFICATE-----"
    return ""


def _port(url: str) -> int:
    port = url.rstrip("/").rpartition(":")[2]
    return int(port) if port.isdecimal() else 0
