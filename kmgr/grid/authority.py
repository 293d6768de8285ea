"""Keys and certificates: the only file that knows the cryptography library.

* The grid CA signs one certificate a server; its name is the URI
  `kmgr:server:<id>`. Who holds such a certificate *and* is a member of the grid
  may use the grid port. Removal from the servers table revokes at once, so these
  certificates may live long and begin in the past: a server with a wrong clock
  must still be able to join.
* The CA key is part of the state, sealed (AES-256-GCM) with the grid secret,
  which never leaves the servers' protected files. Any member can sign.
* All contexts speak TLS 1.3 only and verify strictly, except for dates: membership
  decides who may speak, and a certificate that ran out while its server slept, or
  a clock that is wrong, must never take a server from the grid.
* The keys of a join and their proofs come from here as well (HKDF and HMAC with SHA-256).

Everything goes in and out as PEM bytes; blocking, but each call takes about a millisecond.
"""

import base64
import hashlib
import ipaddress
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kmgr.errors import InvariantBroken, Refused
from kmgr.ids import ServerId

URI_PREFIX = "kmgr:server:"

# Members' certificates begin long ago on purpose: membership decides, not a clock that may be wrong on an appliance.
_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
# A machine without a battery for its clock starts in 1970; its certificates must not end before it is set right.
_THIS_VERSION = datetime(2025, 1, 1, tzinfo=UTC)
_CA_DAYS = 30 * 365
_SERVER_DAYS = 10 * 365
# Browsers refuse server certificates that are valid for much longer than two years.
_WEB_DAYS = 730
CA_KEY = "kmgr grid CA key"
# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python's ssl module has no name for.
_NO_CHECK_TIME = 0x200000
_PEM = serialization.Encoding.PEM
_PLAIN_KEY = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo


@dataclass(frozen=True, slots=True)
class KeyAndCertificate:
    """A private key and the certificate that belongs to it, both PEM."""

    key_pem: bytes = field(repr=False)
    cert_pem: bytes


def new_key() -> bytes:
    """Return a fresh private key (P-256)."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def new_secret() -> bytes:
    """Return a fresh grid secret: 32 random bytes."""
    return os.urandom(32)


def create_ca(grid: str, *, now_ms: int) -> KeyAndCertificate:
    """Make a grid's own certificate authority."""
    key_pem = new_key()
    key = _private(key_pem)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"kmgr grid {grid}")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_LONG_AGO)
        .not_valid_after(_day(now_ms) + timedelta(days=_CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return KeyAndCertificate(key_pem, builder.sign(key, hashes.SHA256()).public_bytes(_PEM))


def certificate_request(key_pem: bytes, server: ServerId) -> bytes:
    """Return a request (PEM) that proves possession of the key, for a member to sign."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(_private(key_pem), hashes.SHA256())
    return request.public_bytes(_PEM)


def request_key(request_pem: bytes) -> str:
    """Return the SHA-256 (hexadecimal) of the public key in a request: the same in every request of one key."""
    return hashlib.sha256(_requested(request_pem).public_bytes(*_PLAIN_KEY)).hexdigest()


def sign(key_pem: bytes, data: bytes) -> bytes:
    """Sign with a server's private key."""
    return _private(key_pem).sign(data, ec.ECDSA(hashes.SHA256()))


def signed_by(request_pem: bytes, data: bytes, signature: bytes) -> bool:
    """Tell whether the key of a certificate request signed this."""
    try:
        _requested(request_pem).verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def sign_request(request_pem: bytes, server: ServerId, ca: KeyAndCertificate, *, now_ms: int) -> bytes:
    """Sign a server's certificate. Only the key is taken from the request; the name is the caller's."""
    public = _requested(request_pem)
    authority = x509.load_pem_x509_certificate(ca.cert_pem)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server)]))
        .issuer_name(authority.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_LONG_AGO)
        .not_valid_after(_day(now_ms) + timedelta(days=_SERVER_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URI_PREFIX + server)]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_issued_by(authority), critical=False)
    )
    return builder.sign(_private(ca.key_pem), hashes.SHA256()).public_bytes(_PEM)


def web_certificate(names: Iterable[str], *, now_ms: int) -> KeyAndCertificate:
    """Make a self-signed HTTPS certificate for host names and addresses, until the administrator brings one."""
    wanted = sorted(set(names))
    key_pem = new_key()
    key = _private(key_pem)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (wanted or ["kmgr"])[0][:64])])
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_WEB_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(text) for text in wanted]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return KeyAndCertificate(key_pem, builder.sign(key, hashes.SHA256()).public_bytes(_PEM))


def web_names(cert_pem: bytes) -> frozenset[str]:
    """Return the host names and addresses that an HTTPS certificate is for."""
    try:
        names = x509.load_pem_x509_certificate(cert_pem).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(str(name.value) for name in names.value)


def expires_within(cert_pem: bytes, days: int, *, now_ms: int) -> bool:
    """Tell whether a certificate ends within so many days, so that it is time to renew it."""
    end = x509.load_pem_x509_certificate(cert_pem).not_valid_after_utc
    return end - timedelta(days=days) <= datetime.fromtimestamp(now_ms / 1000, UTC)


def fingerprint(cert_pem: bytes) -> str:
    """Return the SHA-256 of a certificate as 64 hexadecimal digits."""
    return x509.load_pem_x509_certificate(cert_pem).fingerprint(hashes.SHA256()).hex()


def issued_to(cert_der: bytes, ca_cert_pem: bytes) -> ServerId | None:
    """Return the server that a certificate names if this CA signed it, otherwise None."""
    try:
        certificate = x509.load_der_x509_certificate(cert_der)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_cert_pem))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return None
    return _server_in(names.get_values_for_type(x509.UniformResourceIdentifier))


def peer_of(connection: ssl.SSLObject | ssl.SSLSocket) -> ServerId | None:
    """Return the server that the other end's verified certificate names; None without a certificate."""
    certificate = connection.getpeercert()
    pairs = certificate.get("subjectAltName", ()) if certificate else ()
    return _server_in(str(pair[1]) for pair in pairs if pair[0] == "URI")


def seal(secret: bytes, data: bytes, *, purpose: str = CA_KEY) -> str:
    """Encrypt with the grid secret, as text for the state; it opens for the same purpose only."""
    nonce = os.urandom(12)
    return base64.b64encode(nonce + AESGCM(secret).encrypt(nonce, data, purpose.encode())).decode()


def unseal(secret: bytes, text: str, *, purpose: str = CA_KEY) -> bytes:
    """Decrypt what `seal` made; a wrong secret is a broken installation."""
    raw = base64.b64decode(text)
    try:
        return AESGCM(secret).decrypt(raw[:12], raw[12:], purpose.encode())
    except (InvalidTag, ValueError) as error:
        raise InvariantBroken(
            f"what the grid has sealed ({purpose}) does not open with this server's grid secret: identity/grid.secret"
            " is not this grid's. Restore it from a backup, or remove this server and let it join again"
        ) from error


def derive(key: bytes, purpose: str) -> bytes:
    """Return 32 bytes made from a key for one purpose (HKDF-SHA256): of no use for any other."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose.encode()).derive(key)


def prove(key: bytes, data: bytes) -> bytes:
    """Return the proof (HMAC-SHA256) that whoever made it has the key and means this data."""
    mac = HMAC(key, hashes.SHA256())
    mac.update(data)
    return mac.finalize()


def proven(key: bytes, data: bytes, proof: bytes) -> bool:
    """Tell, in constant time, whether a proof is the one for this key and data."""
    mac = HMAC(key, hashes.SHA256())
    mac.update(data)
    try:
        mac.verify(proof)
    except InvalidSignature:
        return False
    return True


def server_context(cert: Path, key: Path, ca_cert_pem: bytes, *, alpn: list[str]) -> ssl.SSLContext:
    """Return the listening side of the grid port: it verifies a client certificate if one is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Optional, because a newcomer has none yet: what it may then do is decided by its ALPN word.
    context.verify_mode = ssl.CERT_OPTIONAL
    # Session tickets would be sent to every short connection and used by none.
    context.num_tickets = 0
    return _harden(context, cert, key, ca_cert_pem, alpn)


def client_context(cert: Path, key: Path, ca_cert_pem: bytes, *, alpn: list[str]) -> ssl.SSLContext:
    """Return the dialling side of the grid port: the other end must hold a certificate of this grid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Addresses change and are no identity here: the caller compares the server id in the certificate.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return _harden(context, cert, key, ca_cert_pem, alpn)


def stranger_context(*, alpn: list[str]) -> ssl.SSLContext:
    """Return the newcomer's side of a join: it trusts nothing yet and the join's exchange proves the certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(alpn)
    return context


def _harden(context: ssl.SSLContext, cert: Path, key: Path, ca_cert_pem: bytes, alpn: list[str]) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Dates do not decide, the servers table does: see the top of this file.
    context.verify_flags |= ssl.VERIFY_X509_STRICT | _NO_CHECK_TIME
    context.load_cert_chain(cert, key)
    context.load_verify_locations(cadata=ca_cert_pem.decode())
    context.set_alpn_protocols(alpn)
    return context


def _private(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(key_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvariantBroken("a private key of this server is not of the kind that kmgr makes")
    return key


def _requested(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(request_pem)
        good = request.is_signature_valid
    except ValueError as error:
        raise Refused(f"the certificate request cannot be read: {error}") from error
    public = request.public_key()
    if not good or not isinstance(public, ec.EllipticCurvePublicKey):
        raise Refused("the certificate request is not signed by its own key")
    return public


def _day(now_ms: int) -> datetime:
    return max(_THIS_VERSION, datetime.fromtimestamp(now_ms / 1000, UTC).replace(microsecond=0))


def _issued_by(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _key_usage(*, sign_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _server_in(uris: Iterable[str]) -> ServerId | None:
    for uri in uris:
        if uri.startswith(URI_PREFIX):
            return ServerId(uri.removeprefix(URI_PREFIX))
    return None
