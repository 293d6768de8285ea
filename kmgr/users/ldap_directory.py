"""People from LDAP or Active Directory. The only file that imports ldap3.

Facts that shape it:

* ldap3 is synchronous: each log-in runs in a thread of its own pool, so that a directory that hangs never takes the
  threads that built-in accounts need. Every socket has time-outs, and a log-in as a whole has one.
* Its host name check fails for addresses on Python ≥ 3.12, so TLS goes through our own `SSLContext`, which also
  decides the least version and the trusted CA.
* An empty password is an *anonymous* bind that succeeds: refused before any network.
* A directory finds an entry by more spellings than one (accents, width, blanks, other names). Who a person is, is
  therefore what their entry says, never what they typed.
* Active Directory says why in `data XXX` behind error 49, and only after the password was right (except 52e and 525).
* OpenLDAP does not resolve nested groups; AD does, by the in-chain rule. A server that ignores the rule answers with
  success and nothing, so AD is recognised by its root entry first.
* AD does not list a person in their primary group ("Domain Users"): its SID is put together from two fields.
"""

import asyncio
import re
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import ldap3
from ldap3.core.exceptions import LDAPException
from ldap3.utils.conv import escape_bytes, escape_filter_chars
from ldap3.utils.dn import escape_rdn

from kmgr.errors import Refused
from kmgr.ids import AccountName
from kmgr.users.directory import AccountClosed, DirectoryUnreachable, Unknown, WrongPassword
from kmgr.users.model import DirectoryConfig, Person, Role, normalised, problem_of

# Per server, then for a log-in as a whole: a person waits ten seconds, not longer.
CONNECT_S = 3
ANSWER_S = 4
LOGIN_S = 10.0
_AD_CAPABILITY = "1.2.840.113556.1.4.800"
_IN_CHAIN = "1.2.840.113556.1.4.1941"
# Deeper nesting than this is a mistake in the directory, not a wish.
_DEPTH = 10
# Groups asked for in one search: a filter must stay within what servers take.
_AT_ONCE = 50
# Servers cut answers off beyond a limit of theirs, and refuse pages that are larger than another one.
_PAGE = 100
_AD_DATA = re.compile(r"data ([0-9a-fA-F]+)")
_NAMING_FIELD = re.compile(r"\(([A-Za-z][A-Za-z0-9-]*)=\{name\}\)")
# X509_V_ERR_* of OpenSSL: what is told apart for people.
_WRONG_NAME = (62, 64)
_EXPIRED = (9, 10)

# What ldap3 says, and what an administrator understands.
_PLAINLY = (
    ("timed out", "no answer in time"),
    ("Connection refused", "connection refused, nothing listens there"),
    ("invalid server address", "no machine of this name is known"),
)

_threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="directory")

# What Active Directory's sub-codes of "invalid credentials" mean for the person.
_CLOSED: Mapping[str, tuple[str, str]] = {
    "530": ("hours", "You may not log in at this time of day. Ask your administrator."),
    "531": ("workstation", "You may not log in from here. Ask your administrator."),
    "532": ("expired", "Your password has expired. Change it, or ask your administrator."),
    "533": ("disabled", "Your account is disabled. Ask your administrator."),
    "701": ("expired", "Your account has expired. Ask your administrator."),
    "773": ("must_change", "You must change your password before you can log in here."),
    "775": ("locked", "Your account is locked after too many wrong passwords. Wait, or ask your administrator."),
}


class LdapDirectory:
    """One configured directory. Remembers which of its servers answered last, and asks that one first.

    `answer_s` is how long one server may take for one answer, `login_s` how long all of them may take together.
    """

    def __init__(self, config: DirectoryConfig, *, answer_s: int = ANSWER_S, login_s: float = LOGIN_S) -> None:
        self._config = config
        self._answer_s = answer_s
        self._login_s = login_s
        self._answered = 0

    async def authenticate(self, name: str, password: str) -> Person:
        """Bind as the person, then read who they are and their groups, nested ones included."""
        if not name or not password:
            raise WrongPassword
        causes: dict[str, str] = {}
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._login_s):
                return await loop.run_in_executor(_threads, self._authenticate, name, password, causes)
        except TimeoutError:
            raise self._unreachable(causes) from None

    def _authenticate(self, name: str, password: str, causes: dict[str, str]) -> Person:
        first = self._answered
        urls = self._config.urls
        for url in urls[first:] + urls[:first]:
            try:
                return self._at(url, self._plain(name), password)
            except (LDAPException, OSError) as error:
                causes[url] = _told(error)
        raise self._unreachable(causes)

    def _unreachable(self, causes: Mapping[str, str]) -> DirectoryUnreachable:
        told = "; ".join(f"{url}: {causes.get(url, 'no answer in time')}" for url in self._config.urls)
        return DirectoryUnreachable(
            f"The directory cannot be asked ({told}). "
            "Built-in accounts still work; the administrator should look at the directory's address and certificate."
        )

    def _at(self, url: str, name: str, password: str) -> Person:
        connection = _connected(url, self._config.ca_pem, answer_s=self._answer_s)
        try:
            connection.user, connection.password = self._bind_name(name), password
            connection.authentication = ldap3.SIMPLE
            refusal = None if connection.bind() else _refusal(connection.result)
            if not isinstance(refusal, OSError):
                self._answered = self._config.urls.index(url)
            if refusal is not None:
                raise refusal
            return self._person(connection, name)
        finally:
            _drop(connection)

    def _plain(self, name: str) -> str:
        # Who types their whole name (anna@corp.example) is the person who types the short one.
        before, _, suffix = self._config.bind_name.partition("{name}")
        return name.removesuffix(suffix.casefold()) if not before and suffix.startswith("@") else name

    def _bind_name(self, name: str) -> str:
        pattern = self._config.bind_name
        return pattern.replace("{name}", escape_rdn(name) if "={name}" in pattern else name)

    def _person(self, connection: ldap3.Connection, name: str) -> Person:
        naming = _NAMING_FIELD.search(self._config.user_filter)
        fields = ["cn", "displayName", "objectSid", "primaryGroupID", *(naming.groups() if naming else ())]
        wanted = self._config.user_filter.replace("{name}", escape_filter_chars(name))
        entries = _search(connection, self._config.base_dn, wanted, fields)
        if len(entries) != 1:
            found = f"{len(entries)} entries fit" if entries else "no entry fits"
            raise AccountClosed(
                f"Your password is right, but {found} your name below {self._config.base_dn}. Ask your administrator "
                "to look at base DN and user filter.",
                code="no_entry",
            )
        entry = entries[0]
        plain = normalised((_first(entry, naming.group(1)) if naming else "") or name)
        groups = self._groups(connection, entry, plain)
        admin = bool(self._config.admin_group) and normalised(self._config.admin_group) in groups
        return Person(
            name=AccountName(plain),
            display_name=_first(entry, "displayName") or _first(entry, "cn") or plain,
            groups=tuple(sorted(groups)),
            role=Role.ADMIN if admin else Role.USER,
            source=self._config.urls[0],
        )

    def _groups(self, connection: ldap3.Connection, entry: Mapping[str, Any], name: str) -> set[str]:
        if _is_active_directory(connection):
            return self._groups_of_active_directory(connection, entry)
        groups: set[str] = set()
        seen = {str(entry["dn"]).casefold()}
        # The older kind of group names its members by log-in name and does not nest.
        above = [*self._having(connection, [entry["dn"]]), *self._search(connection, f"(memberUid={_escaped(name)})")]
        for _ in range(_DEPTH):
            fresh = {group["dn"].casefold(): group for group in above if group["dn"].casefold() not in seen}
            groups |= {_first(group, "cn").casefold() for group in fresh.values()}
            seen |= set(fresh)
            above = self._having(connection, [group["dn"] for group in fresh.values()])
            if not above:
                break
        return groups - {""}

    def _having(self, connection: ldap3.Connection, members: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for start in range(0, len(members), _AT_ONCE):
            some = [_escaped(dn) for dn in members[start : start + _AT_ONCE]]
            wanted = "".join(f"(member={member})(uniqueMember={member})" for member in some)
            found += self._search(connection, f"(|{wanted})")
        return found

    def _groups_of_active_directory(self, connection: ldap3.Connection, entry: Mapping[str, Any]) -> set[str]:
        found = self._search(connection, f"(member:{_IN_CHAIN}:={_escaped(entry['dn'])})")
        sid, primary = _raw(entry, "objectSid"), _raw(entry, "primaryGroupID")
        if sid and primary:
            of_group = sid[:-4] + int(primary).to_bytes(4, "little")
            for group in self._search(connection, f"(objectSid={escape_bytes(of_group)})"):
                found += [group, *self._search(connection, f"(member:{_IN_CHAIN}:={_escaped(group['dn'])})")]
        # Not `cn`: two groups of one domain may share it, and whoever may make a group could make a second "admins".
        return {_first(group, "sAMAccountName").casefold() for group in found} - {""}

    def _search(self, connection: ldap3.Connection, wanted: str) -> list[dict[str, Any]]:
        return _search(connection, self._config.base_dn, wanted, ["cn", "sAMAccountName"])


async def try_directory(config: DirectoryConfig, name: str, password: str) -> str:
    """Log a person in at a directory that need not be saved, and say in words who that is.

    Raises `Refused` if the settings cannot be right, otherwise what the directory says.
    """
    if problem := problem_of(config):
        raise Refused(problem)
    person = await LdapDirectory(config).authenticate(normalised(name), password)
    groups = f"in groups: {', '.join(person.groups)}" if person.groups else "in no groups"
    role = "an administrator" if person.role is Role.ADMIN else "a user"
    return f"{person.display_name} ({person.name}), {groups}; would be {role}"


class _StrictTls(ldap3.Tls):  # type: ignore[misc]
    """ldap3's TLS with our context: the certificate must name the host and chain to the trusted CA."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._own = context
        self._host = host
        self.problem = ""

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        """Wrap the connection's socket; the handshake always happens here."""
        try:
            connection.socket = self._own.wrap_socket(connection.socket, server_hostname=self._host)
        except ssl.SSLCertVerificationError as error:
            self.problem = _distrust(error, self._host)
            raise


def _connected(url: str, ca_pem: str, *, answer_s: int) -> ldap3.Connection:
    """Return a connection that is encrypted and not bound yet."""
    parts = urlsplit(url)
    secure, host = parts.scheme == "ldaps", str(parts.hostname)
    tls = _StrictTls(_context(ca_pem), host)
    server = ldap3.Server(
        host,
        port=parts.port or (636 if secure else 389),
        use_ssl=secure,
        tls=tls,
        connect_timeout=CONNECT_S,
        get_info=ldap3.NONE,
    )
    connection = ldap3.Connection(server, auto_referrals=False, receive_timeout=answer_s, read_only=True)
    try:
        connection.open(read_server_info=False)
        if not secure:
            _start_tls(connection)
    except (LDAPException, OSError) as error:
        _drop(connection)
        raise OSError(tls.problem or _told(error)) from error
    return connection


def _start_tls(connection: ldap3.Connection) -> None:
    try:
        started, why = connection.start_tls(read_server_info=False), "it refuses"
    except LDAPException as error:
        started, why = False, _told(error)
    if not started:
        raise OSError(f"StartTLS failed ({why}), and without it the password would be readable")


def _drop(connection: ldap3.Connection) -> None:
    # `unbind` leaves the socket open if it never got as far as being connected.
    raw = connection.socket
    try:
        if not connection.closed:
            connection.unbind()
    except (LDAPException, OSError):
        pass  # it is thrown away in any case
    finally:
        if raw is not None:
            raw.close()


def _context(ca_pem: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=ca_pem.strip() or None)
    except (ssl.SSLError, ValueError, TypeError) as error:
        raise OSError("the CA certificate that was given cannot be read: paste it as PEM text") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 refuses CAs without a key usage extension, which many a directory's own CA lacks.
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    return context


def _search(connection: ldap3.Connection, base: str, wanted: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    found = connection.extend.standard.paged_search(
        base, wanted, search_scope=ldap3.SUBTREE, attributes=list(fields), paged_size=_PAGE, generator=False
    )
    result = connection.result
    # A base that does not exist holds nothing; any other refusal must not pass for "in no groups".
    if result["result"] not in (0, 32):
        raise OSError(f"the server refuses the search with {result['description']}: {result['message']}")
    return [entry for entry in found if entry.get("type") == "searchResEntry"]


def _is_active_directory(connection: ldap3.Connection) -> bool:
    connection.search("", "(objectClass=*)", ldap3.BASE, attributes=["supportedCapabilities"])
    capabilities = [
        str(value)
        for entry in connection.response or []
        if entry.get("type") == "searchResEntry"
        for value in entry["attributes"].get("supportedCapabilities", [])
    ]
    return _AD_CAPABILITY in capabilities


def _refusal(result: Mapping[str, Any]) -> Exception:
    code, message = result.get("result"), str(result.get("message", ""))
    if code == 49:
        data = _AD_DATA.search(message)
        closed = _CLOSED.get(data.group(1).lower()) if data else None
        if closed is not None:
            return AccountClosed(closed[1], code=closed[0])
        return Unknown()
    if code in (19, 53):
        return AccountClosed(
            "The directory does not let you log in at present. Ask your administrator.", code="locked"
        )
    if code in (32, 34):
        return Unknown()
    return OSError(f"the directory refuses with {result.get('description')}: {message or 'no reason given'}")


def _first(entry: Mapping[str, Any], field: str) -> str:
    value = entry["attributes"].get(field) or ""
    return str(value[0]) if isinstance(value, list) else str(value)


def _raw(entry: Mapping[str, Any], field: str) -> bytes:
    values = entry["raw_attributes"].get(field) or [b""]
    return bytes(values[0])


def _escaped(value: str) -> str:
    return str(escape_filter_chars(value))


def _distrust(error: ssl.SSLCertVerificationError, host: str) -> str:
    if error.verify_code in _WRONG_NAME:
        return f"its certificate is not for {host}: use the name that the certificate is made for as the address"
    if error.verify_code in _EXPIRED:
        return "its certificate is not valid now: renew it, or set this server's clock right"
    return f"its certificate is not signed by the CA that was given ({error.verify_message}): paste the right CA"


def _told(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return next((plain for part, plain in _PLAINLY if part in text), text)
