"""What a stranger offers to speak, read from the beginning of its handshake."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.grid.hello import RECORD, needed, offered


def hello(*words: str) -> bytes:
    """Return the first bytes that OpenSSL sends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if words:
        context.set_alpn_protocols(list(words))
    sent = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="example.org")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


def test_openssls_own_hello_is_understood() -> None:
    assert offered(hello("kmgr-raft/1")) == {b"kmgr-raft/1"}
    assert offered(hello("h2", "http/1.1")) == {b"h2", b"http/1.1"}
    assert offered(hello()) == frozenset()


def test_it_says_how_much_is_needed() -> None:
    data = hello("kmgr-raft/1")
    assert needed(b"") == needed(data[:1]) == RECORD
    assert needed(data[:RECORD]) == needed(data) == len(data)
    assert needed(b"GET / HTTP/1.1") == 0


def test_a_hello_cut_short_offers_nothing() -> None:
    data = hello("kmgr-raft/1")
    assert {offered(data[:size]) for size in range(len(data))} == {frozenset()}


@given(st.binary(max_size=300), st.integers(0, 300), st.binary(max_size=8))
def test_rubbish_offers_nothing_and_breaks_nothing(data: bytes, at: int, other: bytes) -> None:
    offered(b"\x16\x03\x01" + len(data).to_bytes(2) + data)
    good = hello("kmgr-raft/1")
    offered(good[:at] + other + good[at + len(other) :])
    assert needed(data) >= 0
