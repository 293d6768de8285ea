"""Keys and certificates: who is who on the grid port, what is sealed, what HTTPS shows."""

import contextlib
import ssl
from pathlib import Path

import pytest

from kmgr.errors import ConfigError, Conflict, InvariantBroken, Refused
from kmgr.grid import authority, identity
from kmgr.grid.authority import KeyAndCertificate
from kmgr.ids import ServerId

NOW = 1_700_000_000_000
A = ServerId("srv-a")


def signed(ca: KeyAndCertificate, server: ServerId = A) -> KeyAndCertificate:
    key = authority.new_key()
    request = authority.certificate_request(key, server)
    return KeyAndCertificate(key, authority.sign_request(request, server, ca, now_ms=NOW))


def der(cert_pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(cert_pem.decode())


def member(ca: KeyAndCertificate) -> identity.Identity:
    own = signed(ca)
    return identity.Identity(A, "a", "grid-1", "office", own.key_pem, own.cert_pem, ca.cert_pem, b"s" * 32)


@pytest.fixture(scope="module")
def ca() -> KeyAndCertificate:
    return authority.create_ca("office", now_ms=NOW)


def shake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Run a handshake in memory."""
    one, two = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(one, two, server_side=False)
    far = server.wrap_bio(two, one, server_side=True)
    for _ in range(4):
        for end in (near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return near, far


def test_each_end_knows_the_others_server_id_from_the_certificate(tmp_path: Path, ca: KeyAndCertificate) -> None:
    ends = []
    for number, make in enumerate((authority.client_context, authority.server_context)):
        own = signed(ca, ServerId(f"srv-{number}"))
        (tmp_path / f"{number}.crt").write_bytes(own.cert_pem)
        (tmp_path / f"{number}.key").write_bytes(own.key_pem)
        ends.append(make(tmp_path / f"{number}.crt", tmp_path / f"{number}.key", ca.cert_pem, alpn=["kmgr-call/1"]))
    near, far = shake(ends[0], ends[1])
    assert authority.peer_of(near) == "srv-1"
    assert authority.peer_of(far) == "srv-0"
    assert near.version() == "TLSv1.3"
    assert far.selected_alpn_protocol() == "kmgr-call/1"


def test_a_certificate_of_another_grid_is_refused_in_the_handshake(tmp_path: Path, ca: KeyAndCertificate) -> None:
    other = authority.create_ca("other", now_ms=NOW)
    for name, own in (("in", signed(ca)), ("out", signed(other))):
        (tmp_path / f"{name}.crt").write_bytes(own.cert_pem)
        (tmp_path / f"{name}.key").write_bytes(own.key_pem)
    client = authority.client_context(tmp_path / "out.crt", tmp_path / "out.key", ca.cert_pem, alpn=["x"])
    server = authority.server_context(tmp_path / "in.crt", tmp_path / "in.key", ca.cert_pem, alpn=["x"])
    with pytest.raises(ssl.SSLError):
        shake(client, server)


def test_a_certificate_says_whom_it_was_issued_to_only_for_its_own_ca(ca: KeyAndCertificate) -> None:
    own = signed(ca)
    other = authority.create_ca("office", now_ms=NOW)
    assert authority.issued_to(der(own.cert_pem), ca.cert_pem) == A
    assert authority.issued_to(der(own.cert_pem), other.cert_pem) is None
    assert authority.issued_to(b"rubbish", ca.cert_pem) is None
    assert authority.issued_to(der(ca.cert_pem), ca.cert_pem) is None


@pytest.mark.parametrize(
    "rubbish", [b"", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----"]
)
def test_a_request_that_is_none_is_refused(ca: KeyAndCertificate, rubbish: bytes) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        authority.sign_request(rubbish, A, ca, now_ms=NOW)


def test_what_is_sealed_opens_with_the_same_secret_only() -> None:
    sealed = authority.seal(b"s" * 32, b"the key")
    assert authority.unseal(b"s" * 32, sealed) == b"the key"
    with pytest.raises(InvariantBroken, match=r"grid\.secret"):
        authority.unseal(b"t" * 32, sealed)


def test_certificates_outlive_many_years_and_are_renewed_in_time(ca: KeyAndCertificate) -> None:
    own = signed(ca).cert_pem
    assert not authority.expires_within(own, 365, now_ms=NOW)
    assert authority.expires_within(own, 365, now_ms=NOW + 9_900 * 86_400_000)


def test_a_grid_born_on_a_machine_without_a_clock_is_still_valid_years_later() -> None:
    ca = authority.create_ca("office", now_ms=0)
    assert not authority.expires_within(ca.cert_pem, 365, now_ms=NOW)
    own = authority.sign_request(authority.certificate_request(authority.new_key(), A), A, ca, now_ms=0)
    assert not authority.expires_within(own, 365, now_ms=NOW)


def test_an_identity_is_read_back_as_it_was_written(tmp_path: Path, ca: KeyAndCertificate) -> None:
    assert identity.load(tmp_path) is None
    written = member(ca)
    identity.write(tmp_path, written)
    assert identity.load(tmp_path) == written
    assert (identity.folder(tmp_path) / "server.key").stat().st_mode & 0o777 == 0o600
    assert "s" * 32 not in repr(written)


def test_a_used_folder_is_refused_by_the_name_of_its_grid(tmp_path: Path, ca: KeyAndCertificate) -> None:
    identity.write(tmp_path, member(ca))
    before = {file.name: file.read_bytes() for file in identity.folder(tmp_path).iterdir()}
    for attempt in (lambda: identity.write(tmp_path, member(ca)), lambda: identity.begin_joining(tmp_path, A)):
        with pytest.raises(Conflict, match="'office'"):
            attempt()
    assert before == {file.name: file.read_bytes() for file in identity.folder(tmp_path).iterdir()}


def test_a_join_that_was_cut_off_goes_on_with_the_same_id_and_key(tmp_path: Path) -> None:
    first = identity.begin_joining(tmp_path, A)
    assert identity.begin_joining(tmp_path, ServerId("srv-b")) == first
    (identity.folder(tmp_path) / "joining.json").unlink()
    server, key = identity.begin_joining(tmp_path, ServerId("srv-b"))
    assert server == "srv-b"
    assert key != first[1]


def test_a_damaged_identity_says_what_to_do(tmp_path: Path, ca: KeyAndCertificate) -> None:
    identity.write(tmp_path, member(ca))
    (identity.folder(tmp_path) / "grid.secret").unlink()
    with pytest.raises(ConfigError, match="backup"):
        identity.load(tmp_path)


def test_a_server_renews_its_own_certificate(tmp_path: Path, ca: KeyAndCertificate) -> None:
    old = member(ca)
    identity.write(tmp_path, old)
    sealed = authority.seal(old.secret, ca.key_pem)
    new = identity.renew_certificate(tmp_path, old, sealed, now_ms=NOW + 1_000)
    assert new.fingerprint != old.fingerprint
    assert authority.issued_to(der(new.cert_pem), ca.cert_pem) == A
    assert identity.load(tmp_path) == new


def test_known_addresses_are_kept_for_the_next_start(tmp_path: Path, ca: KeyAndCertificate) -> None:
    identity.write(tmp_path, member(ca))
    own = identity.load(tmp_path)
    assert own is not None
    identity.remember_peers(tmp_path, own, {A: "me:1", ServerId("srv-b"): "b:1"})
    again = identity.load(tmp_path)
    assert again is not None
    assert again.peers == {"srv-b": "b:1"}


def test_the_https_certificate_is_made_once_and_again_for_a_new_name(tmp_path: Path) -> None:
    names = frozenset({"localhost", "127.0.0.1"})
    cert, key = identity.ensure_web_certificate(tmp_path, names, now_ms=NOW)
    first = cert.read_bytes()
    assert authority.web_names(first) == names
    identity.ensure_web_certificate(tmp_path, names, now_ms=NOW)
    assert cert.read_bytes() == first
    identity.ensure_web_certificate(tmp_path, names | {"::1"}, now_ms=NOW)
    assert cert.read_bytes() != first
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)


def test_a_certificate_brought_by_the_administrator_is_never_replaced(tmp_path: Path) -> None:
    cert, _ = identity.ensure_web_certificate(tmp_path, frozenset({"a"}), now_ms=NOW)
    (identity.folder(tmp_path) / "web.own").unlink()
    before = cert.read_bytes()
    identity.ensure_web_certificate(tmp_path, frozenset({"b"}), now_ms=NOW)
    assert cert.read_bytes() == before
