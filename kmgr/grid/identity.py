"""Who this server is: the folder `identity/` of the data folder.

    server.key   this server's private key            server.crt   signed by the grid CA
    ca.crt       the grid CA's certificate            grid.secret  opens the sealed CA key
    bootstrap.json  the first commands of a new grid, until they are in the log
    joining.json    a join that has begun: this server's id, and which grid it asked
    identity.json   ids, names and where other servers were last known; written last

Only with `identity.json` is the folder an identity: without it, it is a join or
an init that was cut off, and may be begun again. Files are written to a
temporary name, synced and renamed; nobody but the daemon's user may read them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kmgr.errors import ConfigError, Conflict, Unavailable
from kmgr.grid import authority
from kmgr.ids import ServerId

FORMAT = 1
IDENTITY = "identity.json"
BOOTSTRAP = "bootstrap.json"
JOINING = "joining.json"
_WEB_RENEW_DAYS = 60


@dataclass(frozen=True, slots=True)
class Identity:
    """What one server is in one grid. `peers` are the addresses known when it joined, for the first contact."""

    server: ServerId
    name: str
    grid: str
    grid_name: str
    key_pem: bytes = field(repr=False)
    cert_pem: bytes
    ca_cert_pem: bytes
    secret: bytes = field(repr=False)
    peers: Mapping[ServerId, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of this server's certificate, as the servers table shows it."""
        return authority.fingerprint(self.cert_pem)


def folder(data_dir: Path) -> Path:
    """Return where the identity of a data folder lies."""
    return data_dir / "identity"


def load(data_dir: Path) -> Identity | None:
    """Read this server's identity; None if it has none yet (or only a half-made one)."""
    place = folder(data_dir)
    try:
        raw = json.loads((place / IDENTITY).read_bytes())
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ConfigError(
            f"{place / IDENTITY} may not be read by this user: type the command as root. A daemon's data folder is "
            "all its own: chown -R"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place / IDENTITY} cannot be read: {error}. Restore it from a backup") from error
    if raw.get("format") != FORMAT:
        raise ConfigError(f"{place / IDENTITY} was written by another version of kmgr: install that version")
    try:
        return Identity(
            server=ServerId(raw["server"]),
            name=raw["name"],
            grid=raw["grid"],
            grid_name=raw["grid_name"],
            key_pem=(place / "server.key").read_bytes(),
            cert_pem=(place / "server.crt").read_bytes(),
            ca_cert_pem=(place / "ca.crt").read_bytes(),
            secret=bytes.fromhex((place / "grid.secret").read_text()),
            peers={ServerId(server): address for server, address in raw["peers"].items()},
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"this server's identity in {place} is damaged: {error}. Restore it from a backup"
        ) from error


def refuse_if_used(data_dir: Path) -> None:
    """Raise `Conflict` naming the grid that lives in this data folder, if one does."""
    used = load(data_dir)
    if used is not None:
        raise Conflict(
            f"the data folder {data_dir} already belongs to server {used.name!r} of the grid {used.grid_name!r}: "
            "nothing was changed. Use an empty data folder for another server"
        )


def write(data_dir: Path, identity: Identity, *, bootstrap: bytes | None = None) -> None:
    """Make the folder an identity; cut off anywhere, it either is one afterwards or is not."""
    refuse_if_used(data_dir)
    place = _made(data_dir)
    atomic_write(place / "server.key", identity.key_pem)
    atomic_write(place / "server.crt", identity.cert_pem)
    atomic_write(place / "ca.crt", identity.ca_cert_pem)
    atomic_write(place / "grid.secret", identity.secret.hex().encode())
    if bootstrap is not None:
        atomic_write(place / BOOTSTRAP, bootstrap)
    else:
        (place / BOOTSTRAP).unlink(missing_ok=True)
    atomic_write(place / IDENTITY, _described(identity))
    (place / JOINING).unlink(missing_ok=True)


def remember_peers(data_dir: Path, identity: Identity, peers: Mapping[ServerId, str]) -> Identity:
    """Note where the other servers are, for a first contact after a long rest; writes only if it changed."""
    others = {server: address for server, address in peers.items() if server != identity.server}
    if others == dict(identity.peers):
        return identity
    changed = replace(identity, peers=others)
    atomic_write(folder(data_dir) / IDENTITY, _described(changed))
    return changed


def renew_certificate(data_dir: Path, identity: Identity, ca_key_sealed: str, *, now_ms: int) -> Identity:
    """Sign a new certificate for this server with the grid's own CA key; the key pair stays."""
    ca = authority.KeyAndCertificate(authority.unseal(identity.secret, ca_key_sealed), identity.ca_cert_pem)
    request = authority.certificate_request(identity.key_pem, identity.server)
    cert_pem = authority.sign_request(request, identity.server, ca, now_ms=now_ms)
    atomic_write(folder(data_dir) / "server.crt", cert_pem)
    return replace(identity, cert_pem=cert_pem)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A join that asked a grid to be taken in and may have been: with its key this server can prove who it is.

    `others` are addresses of further servers of that grid.
    """

    server: ServerId
    key_pem: bytes = field(repr=False)
    address: str
    ca_cert_pem: bytes
    others: tuple[str, ...] = ()


def note_asking(data_dir: Path, address: str, ca_cert_pem: bytes, *, others: Sequence[str] = ()) -> None:
    """Note which grid is about to be asked, so that a join that is cut off afterwards can be finished."""
    path = folder(data_dir) / JOINING
    server = json.loads(path.read_bytes())["server"]
    asked = {"server": server, "address": address, "ca_cert_pem": ca_cert_pem.decode(), "others": list(others)}
    atomic_write(path, json.dumps(asked).encode())


def unfinished(data_dir: Path) -> Unfinished | None:
    """Return the join that was cut off after it had asked; None if there is none."""
    place = folder(data_dir)
    if (place / IDENTITY).exists():
        return None
    try:
        raw = json.loads((place / JOINING).read_bytes())
        key_pem = (place / "server.key").read_bytes()
        others = tuple(raw.get("others", ()))
        return Unfinished(ServerId(raw["server"]), key_pem, raw["address"], raw["ca_cert_pem"].encode(), others)
    except (OSError, ValueError, KeyError):
        return None


def begin_joining(data_dir: Path, fresh: ServerId) -> tuple[ServerId, bytes]:
    """Return id and key to join with; the same ones after a join that was cut off, so that it can be repeated."""
    refuse_if_used(data_dir)
    place = folder(data_dir)
    try:
        return ServerId(json.loads((place / JOINING).read_bytes())["server"]), (place / "server.key").read_bytes()
    except (OSError, ValueError, KeyError):
        discard_unfinished(data_dir)
    place = _made(data_dir)
    key_pem = authority.new_key()
    atomic_write(place / "server.key", key_pem)
    atomic_write(place / JOINING, json.dumps({"server": fresh}).encode())
    return fresh, key_pem


def discard_unfinished(data_dir: Path) -> None:
    """Remove what an init or a join that was cut off left behind; an identity is never touched."""
    place = folder(data_dir)
    if not place.is_dir() or (place / IDENTITY).exists():
        return
    for file in sorted(place.iterdir()):
        # The HTTPS certificate is the setup wizard's: its user has looked at the fingerprint already.
        if not file.name.startswith("web."):
            file.unlink()


def ensure_web_certificate(data_dir: Path, names: frozenset[str], *, now_ms: int) -> tuple[Path, Path]:
    """Return certificate and key files for HTTPS, made anew when names are missing or the end is near.

    One that the administrator put into `web.crt` and `web.key` is never replaced:
    he removes `web.own`, the mark of kmgr's own certificate.
    """
    place = _made(data_dir)
    cert, key, own = place / "web.crt", place / "web.key", place / "web.own"
    if cert.exists() and key.exists():
        if not own.exists():
            return cert, key
        pem = cert.read_bytes()
        if names <= authority.web_names(pem) and not authority.expires_within(pem, _WEB_RENEW_DAYS, now_ms=now_ms):
            return cert, key
    made = authority.web_certificate(names, now_ms=now_ms)
    atomic_write(own, b"made by kmgr\n")
    atomic_write(key, made.key_pem)
    atomic_write(cert, made.cert_pem)
    return cert, key


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file as a whole or raise `Unavailable`; its owner only may read it, a power cut breaks nothing."""
    temporary = path.with_name(path.name + ".new")
    try:
        _write_synced(temporary, data)
        temporary.replace(path)
        _sync_names(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise Unavailable(
            f"{path} cannot be written: {error.strerror or error}. Make room, or look after the disk, and try again"
        ) from error


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _made(data_dir: Path) -> Path:
    place = folder(data_dir)
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{place} cannot be made: {error.strerror}. Choose another data folder") from error
    return place


def _described(identity: Identity) -> bytes:
    raw: dict[str, Any] = {
        "format": FORMAT,
        "server": identity.server,
        "name": identity.name,
        "grid": identity.grid,
        "grid_name": identity.grid_name,
        "peers": dict(identity.peers),
    }
    return json.dumps(raw, indent=1, sort_keys=True).encode()
