"""No date takes a server from the grid or a page from a browser: not after decades of running, nor of sleep."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from kmgr.clock import ManualClock
from kmgr.daemon.supervise import every_day
from kmgr.errors import Unavailable
from kmgr.grid import authority, identity
from kmgr.grid.bootstrap import create_grid
from kmgr.grid.commands import APPLIERS
from kmgr.grid.local import LocalGrid
from kmgr.grid.presence import ContactBook, Presence, Whereabouts
from kmgr.grid.queries import server
from kmgr.grid.schema import SCHEMA
from kmgr.grid.wire import CALL, Connection, GridPort
from kmgr.ids import ServerId
from tests.lab.join_lab import Fresh, Office
from tests.lab.wires import Wires

YEAR_S = 365 * 86_400
A, B = ServerId("srv-a"), ServerId("srv-b")
LONG_OVER = datetime(2021, 1, 1, tzinfo=UTC)


def ended(cert_pem: bytes, ca_key_pem: bytes) -> bytes:
    """Return the same certificate as if it had ended in 2021."""
    old = x509.load_pem_x509_certificate(cert_pem)
    key = serialization.load_pem_private_key(ca_key_pem, None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(old.serial_number)
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(LONG_OVER)
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


class Asleep(Wires):
    """A grid whose certificates, the CA's included, all ended years ago."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        key = self.ca.key_pem
        self.ca = authority.KeyAndCertificate(key, ended(self.ca.cert_pem, key))

    def port(self, server: ServerId) -> GridPort:
        self.identity(server)
        path = self.folder / server / "identity" / "server.crt"
        path.write_bytes(ended(path.read_bytes(), self.ca.key_pem))
        own = identity.load(self.folder / server)
        assert own is not None
        port = GridPort(own, self.folder / server, contacts=self.contacts)
        self.ports.append(port)
        return port


@pytest.fixture
async def asleep(tmp_path: Path) -> AsyncIterator[Asleep]:
    wires = Asleep(tmp_path)
    yield wires
    await wires.stop()


async def test_servers_that_slept_past_the_end_of_every_certificate_still_speak(asleep: Asleep) -> None:
    heard: list[ServerId] = []

    async def note(connection: Connection) -> None:
        heard.append(connection.peer)

    for port in (asleep.port(A), asleep.port(B)):
        port.handle(CALL, note)
        await asleep.start(port)
    a, b = asleep.ports
    for one, other in ((a, B), (b, A)):
        connection = await one.dial(other, CALL)
        await connection.reader.read()
        connection.cut()
    assert heard == [A, B]


async def test_a_certificate_of_another_grid_is_refused_all_the_same(asleep: Asleep, tmp_path: Path) -> None:
    other = Asleep(tmp_path / "other")
    stranger, port = other.port(B), asleep.port(A)
    port.handle(CALL, lambda _: asyncio.sleep(0))
    await asleep.start(port)
    other.addresses[A] = asleep.addresses[A]
    with pytest.raises(Unavailable, match="certificate was refused"):
        await stranger.dial(A, CALL)
    await other.stop()


@contextmanager
def founded(folder: Path, clock: ManualClock) -> Iterator[tuple[LocalGrid, Presence]]:
    """A grid of one whose presence keeps its certificate."""
    grid_address, web_address, version = "127.0.0.1:1", "127.0.0.1:2", "1"
    own = create_grid(
        folder, grid_name="office", name="a", grid_address=grid_address, web_address=web_address, version=version,
        now_ms=clock.now_ms(),
    )  # fmt: skip
    grid = LocalGrid(own.server, path=folder / "s", appliers=APPLIERS, schemas=(SCHEMA,), clock=clock)
    book = ContactBook(own)
    port = GridPort(own, folder, contacts=book)
    where = Whereabouts(grid_address, web_address, version)
    yield grid, Presence(grid, own=own, data_dir=folder, where=where, book=book, port=port, clock=clock)
    grid.close()


async def test_a_daemon_that_is_never_restarted_renews_its_certificate_for_decades(tmp_path: Path) -> None:
    clock = ManualClock()
    with founded(tmp_path, clock) as (grid, presence):
        running = asyncio.create_task(presence.stay_announced())
        await clock.advance(1)
        seen = set()
        for _ in range(35):
            await clock.advance(YEAR_S, settle=4)
            own = identity.load(tmp_path)
            assert own is not None
            assert not authority.expires_within(own.cert_pem, 300, now_ms=clock.now_ms())
            with grid.view() as db:
                row = server(db, own.server)
            assert row is not None and row.fingerprint == own.fingerprint, "the grid was not told"
            seen.add(own.fingerprint)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(seen) == 4, "once in about nine years"


async def test_the_https_certificate_is_renewed_and_shown_without_a_restart(tmp_path: Path) -> None:
    clock, names = ManualClock(), frozenset({"localhost"})
    cert, key = identity.ensure_web_certificate(tmp_path, names, now_ms=clock.now_ms())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)

    async def renew() -> None:
        identity.ensure_web_certificate(tmp_path, names, now_ms=clock.now_ms())
        context.load_cert_chain(cert, key)

    async def shown() -> bytes:
        stranger = authority.stranger_context(alpn=["http/1.1"])
        port = listener.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=stranger)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return ssl.DER_cert_to_PEM_cert(der).encode()

    running = asyncio.create_task(every_day(renew, clock=clock))
    await asyncio.sleep(0)
    for _ in range(4):
        await clock.advance(YEAR_S, settle=3)
        assert not authority.expires_within(await shown(), 30, now_ms=clock.now_ms())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    listener.close()


async def test_a_server_joins_a_grid_whose_ca_ended_years_ago(office: Office, tmp_path: Path) -> None:
    await office.clock.advance(40 * YEAR_S)
    fresh = Fresh(tmp_path, "b")
    fresh.clock = office.clock
    joined = (await fresh.join(office, await office.phrase())).identity
    assert not authority.expires_within(joined.cert_pem, 9 * 365, now_ms=office.clock.now_ms())
