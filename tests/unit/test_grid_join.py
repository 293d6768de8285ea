"""Joining over loopback TLS: the way in, each refusal with its cure, and everything that may be in between."""

import asyncio
import json
import ssl
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Conflict, NotAllowed, Refused, Unavailable
from kmgr.grid import authority, identity
from kmgr.grid.join import TRIES, VALID_S, finish_joining
from kmgr.grid.joining import Joined, Step
from kmgr.grid.model import InvitationState, ServerRole, ServerState
from kmgr.grid.preflight import PreflightStopped, Severity
from kmgr.grid.queries import events, invitations, server, servers
from kmgr.ids import ServerId
from tests.lab.join_lab import A, Fresh, Office, opened


async def test_a_new_server_joins_with_four_words_and_is_then_trusted(office: Office, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path)
    phrase = await office.phrase()
    assert len(phrase.split("-")) == 4
    done = await fresh.join(office, phrase)
    joined = done.identity
    assert identity.load(tmp_path / "b") == joined and done.warnings == ()
    assert (joined.grid, joined.grid_name) == ("grid-1", "office")
    assert dict(joined.peers) == {A: office.address}
    assert joined.secret == office.own.secret
    der = ssl.PEM_cert_to_DER_cert(joined.cert_pem.decode())
    assert authority.issued_to(der, office.wires.ca.cert_pem) == joined.server
    with office.grid.view() as db:
        row = server(db, joined.server)
    assert row is not None
    assert (row.name, row.fingerprint, row.role) == ("b", joined.fingerprint, ServerRole.SERVER)
    port = fresh.newcomer.listen[1]
    assert (row.grid_address, row.web_address) == (f"127.0.0.1:{port}", "web.example:443")
    assert fresh.steps == list(Step)


async def test_a_witness_joins_as_one_and_needs_no_room_for_images(office: Office, tmp_path: Path) -> None:
    office.images_mib = 1000
    done = await Fresh(tmp_path, role=ServerRole.WITNESS).join(office, await office.phrase())
    with office.grid.view() as db:
        row = server(db, done.identity.server)
    assert row is not None and row.is_witness


async def test_neither_the_words_nor_what_they_become_lie_open_in_the_state(office: Office) -> None:
    phrase = await office.phrase()
    dump = office.everything_stored()
    assert not any(word in dump for word in (phrase, phrase.replace("-", " ")))
    with office.grid.view() as db:
        assert "sealed" not in repr(invitations(db)[0])


async def test_a_phrase_is_read_however_it_was_typed(office: Office, tmp_path: Path) -> None:
    phrase = await office.phrase()
    typed = "  ".join(word[:4].upper() for word in phrase.split("-"))
    await Fresh(tmp_path).join(office, typed)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("apple", "4 words, 1 were given"),
        ("appel zoo zoo zoo", r"'appel' is not one.*did you mean 'apple'\?"),
        ("apple zoo zoo x", "'x' is not one"),
    ],
)
async def test_what_cannot_be_a_phrase_is_refused_before_anything_is_sent(
    office: Office, tmp_path: Path, typed: str, told: str
) -> None:
    await office.phrase()
    fresh = Fresh(tmp_path)
    with pytest.raises(Refused, match=told):
        await fresh.join(office, typed)
    assert fresh.steps == [] and office.tries_left() == TRIES


async def test_a_phrase_works_once(office: Office, tmp_path: Path) -> None:
    phrase = await office.phrase()
    await Fresh(tmp_path).join(office, phrase)
    with pytest.raises(NotAllowed, match="used already: make a new one"):
        await Fresh(tmp_path, "c").join(office, phrase)
    assert office.names() == ["a", "b"]
    assert identity.load(tmp_path / "c") is None


async def test_two_with_one_phrase_at_once_only_one_gets_in(office: Office, tmp_path: Path) -> None:
    phrase = await office.phrase()
    both = (Fresh(tmp_path, name).join(office, phrase) for name in "bc")
    done = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(isinstance(one, Joined) for one in done) == [False, True]
    assert len(office.names()) == 2


async def test_a_newer_invitation_ends_the_one_before(office: Office, tmp_path: Path) -> None:
    older, newer = await office.phrase(), await office.invite()
    assert newer.replaced
    with pytest.raises(NotAllowed, match="phrase is wrong"):
        await Fresh(tmp_path).join(office, older)
    await Fresh(tmp_path).join(office, newer.phrase)


async def test_an_expired_phrase_says_so(office: Office, tmp_path: Path) -> None:
    phrase = await office.phrase()
    await office.clock.advance(VALID_S + 1)
    with pytest.raises(NotAllowed, match="expired"):
        await Fresh(tmp_path).join(office, phrase)


async def test_without_an_invitation_the_cure_is_told(office: Office, tmp_path: Path) -> None:
    with pytest.raises(NotAllowed, match="no server is invited at present: make"):
        await Fresh(tmp_path).join(office, "zoo-zoo-zoo-zoo")


async def test_five_wrong_phrases_lock_the_right_one_for_everybody(office: Office, tmp_path: Path) -> None:
    phrase = await office.phrase()
    for left in range(TRIES - 1, 0, -1):
        with pytest.raises(NotAllowed, match=f"phrase is wrong.*{left} tries are left"):
            await Fresh(tmp_path).join(office, "zoo-zoo-zoo-zoo")
    with pytest.raises(NotAllowed, match="locked now: make a new one"):
        await Fresh(tmp_path).join(office, "zoo-zoo-zoo-zoo")
    for name in "bc":
        with pytest.raises(NotAllowed, match="too often, so this invitation is locked"):
            await Fresh(tmp_path, name).join(office, phrase)
    with office.grid.view() as db:
        found = invitations(db)[0]
        told = [event.text for event in events(db, kind="invitation")]
    assert (found.state, found.sealed) == (InvitationState.LOCKED, "")
    assert "a wrong phrase was tried from 127.0.0.1: the invitation is locked for everybody" in told
    await Fresh(tmp_path).join(office, await office.phrase())


async def test_many_guesses_at_once_are_still_five(office: Office, tmp_path: Path) -> None:
    await office.phrase()
    guesses = (Fresh(tmp_path, f"guess{n}").join(office, "zoo-zoo-zoo-zoo") for n in range(8))
    told = [str(error) for error in await asyncio.gather(*guesses, return_exceptions=True)]
    assert sum("phrase is wrong" in text for text in told) == TRIES
    assert sum("locked" in text and "phrase is wrong" not in text for text in told) == 8 - TRIES


async def test_a_right_phrase_costs_no_try_even_if_the_join_is_refused(office: Office, tmp_path: Path) -> None:
    phrase = await office.phrase()
    for _ in range(TRIES + 1):
        with pytest.raises(PreflightStopped):
            await Fresh(tmp_path, "a").join(office, phrase)
    assert office.tries_left() == TRIES
    await Fresh(tmp_path).join(office, phrase)


async def test_everything_that_is_in_the_way_is_told_at_once(office: Office, tmp_path: Path) -> None:
    office.images_mib = 1000
    fresh = Fresh(tmp_path, "a", version="2", grid_address=office.address, web_address="w:1")
    await fresh.clock.advance(600)
    with pytest.raises(PreflightStopped) as stopped:
        await fresh.join(office, await office.phrase())
    found = [(finding.severity, finding.about) for finding in stopped.value.findings]
    stops = [about for severity, about in found if severity is Severity.STOP]
    assert stops == ["version", "name", "address", "disk", "reach"]
    assert [about for severity, about in found if severity is Severity.WARN] == ["clock"]
    assert "install 1 on the new server" in stopped.value.message and "clock" not in stopped.value.message
    assert office.names() == ["a"] and not identity.unfinished(tmp_path / "a")


@pytest.mark.parametrize(("seconds", "told"), [(600, "10 minutes ahead of"), (-86_400 * 400, "400 days behind")])
async def test_a_clock_that_is_wrong_is_told_and_the_server_joins(
    office: Office, tmp_path: Path, seconds: int, told: str
) -> None:
    fresh = Fresh(tmp_path)
    fresh.clock = ManualClock(now_ms=office.clock.now_ms() + seconds * 1000)
    done = await fresh.join(office, await office.phrase())
    assert [told in warning.text for warning in done.warnings] == [True]


async def test_a_port_that_is_taken_and_an_address_nobody_reaches_stop_the_join(
    office: Office, tmp_path: Path
) -> None:
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    with pytest.raises(PreflightStopped, match="in use by another program"):
        await Fresh(tmp_path, listen=("127.0.0.1", port)).join(office, await office.phrase())
    with pytest.raises(PreflightStopped, match="another machine or program answers"):
        await Fresh(tmp_path, grid_address=f"127.0.0.1:{port}").join(office, await office.phrase())
    taken.close()
    with pytest.raises(PreflightStopped, match=r"cannot reach the new server back at 127.0.0.1:1 .*firewall"):
        await Fresh(tmp_path, grid_address="127.0.0.1:1").join(office, await office.phrase())
    assert office.names() == ["a"]


async def test_a_member_that_the_new_server_cannot_reach_is_a_warning(office: Office, tmp_path: Path) -> None:
    other = {"server": "srv-x", "name": "x", "grid_address": "127.0.0.1:1", "web_address": "w:2", "version": "1"}
    await office.grid.propose("server.add", {**other, "fingerprint": "f"}, by=A)
    await office.grid.propose("server.up", {"server": "srv-x"}, by=A)
    done = await Fresh(tmp_path).join(office, await office.phrase())
    assert ["cannot reach x at 127.0.0.1:1" in warning.text for warning in done.warnings] == [True]


async def test_where_no_grid_answers_the_address_is_named(office: Office, tmp_path: Path) -> None:
    phrase = await office.phrase()
    silent = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    for address in ("127.0.0.1:1", f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"):
        with pytest.raises(Unavailable, match=f"at {address}.*firewall"):
            await Fresh(tmp_path).join(office, phrase, at=address)
    silent.close()
    with pytest.raises(Refused, match="like 192"):
        await Fresh(tmp_path).join(office, phrase, at="nowhere")


async def test_a_used_data_folder_stays_as_it_is(office: Office, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path)
    fresh.data_dir = tmp_path / "a" / A
    with pytest.raises(Conflict, match="already belongs to server 'a' of the grid 'office'"):
        await fresh.join(office, await office.phrase())


async def test_a_grid_without_a_majority_says_so_and_nothing_happened(office: Office, tmp_path: Path) -> None:
    phrase = await office.phrase()
    office.grid._log.cut_off.add(A)
    with pytest.raises(Unavailable, match="majority"):
        await Fresh(tmp_path).join(office, phrase)
    office.grid._log.cut_off.clear()
    await Fresh(tmp_path).join(office, phrase)


async def test_rubbish_on_the_join_desk_is_cut_off(office: Office) -> None:
    await office.phrase()
    context = authority.stranger_context(alpn=["kmgr-join/1"])
    for rubbish in (b"\xff" * 8, b"\0\0\0\2[]", b"\0\0\0\1{", b'\0\0\0\x0e{"half": "zz"}'):
        reader, writer = await asyncio.open_connection("127.0.0.1", office.port.port, ssl=context)
        writer.write(rubbish)
        heard = await reader.read()
        assert b"error" not in heard and b"proof" not in heard
        writer.transport.abort()


async def test_an_exchange_of_another_kind_is_refused(office: Office) -> None:
    await office.phrase()
    context = authority.stranger_context(alpn=["kmgr-join/1"])
    for half in ("", "41" + "00" * 32, "41" + "ff" * 32, "42" + "01" * 32, "41" + "01" * 3):
        reader, writer = await asyncio.open_connection("127.0.0.1", office.port.port, ssl=context)
        said = f'{{"half": "{half}", "version": "1"}}'.encode()
        writer.write(len(said).to_bytes(4) + said)
        assert b"does not take part in the join" in await reader.read()
        writer.transport.abort()
    assert office.tries_left() == TRIES


async def test_a_server_that_was_removed_while_it_joined_starts_anew(office: Office, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path)
    first = await office.asked_and_cut_off(fresh)
    await office.grid.propose("server.remove", {"server": first}, by=A)
    assert await finish_joining(fresh.data_dir) is None
    done = await fresh.join(office, await office.phrase())
    assert done.identity.server != first


async def test_only_the_server_with_the_key_can_finish_a_join(office: Office, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path)
    first = await office.asked_and_cut_off(fresh)
    thief = tmp_path / "thief"
    identity.begin_joining(thief, first)
    identity.note_asking(thief, office.address, office.wires.ca.cert_pem)
    with pytest.raises(Conflict, match="is a member already"):
        await finish_joining(thief)
    mine = await finish_joining(fresh.data_dir)
    assert mine is not None and mine.server == first


async def test_a_request_that_was_overheard_is_not_enough_to_finish_a_join(office: Office, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path)
    await office.asked_and_cut_off(fresh)
    begun = identity.unfinished(fresh.data_dir)
    assert begun is not None
    request = authority.certificate_request(begun.key_pem, begun.server).decode()
    context = authority.stranger_context(alpn=["kmgr-join/1"])
    reader, writer = await asyncio.open_connection("127.0.0.1", office.port.port, ssl=context)
    signed_for_another_time = authority.sign(begun.key_pem, b"something else").hex()
    for said in ({"resume": begun.server, "request_pem": request}, {"proof": signed_for_another_time}):
        data = json.dumps(said).encode()
        writer.write(len(data).to_bytes(4) + data)
    heard = await reader.read()
    assert b"does not have its key" in heard and b"secret" not in heard
    writer.transport.abort()


async def test_a_member_that_is_up_does_not_finish_joining_twice(office: Office, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path)
    first = await office.asked_and_cut_off(fresh)
    await office.grid.propose("server.up", {"server": first}, by=A)
    with pytest.raises(Conflict, match="is a member already"):
        await finish_joining(fresh.data_dir)


async def test_another_grid_is_not_asked_to_finish_a_join(office: Office, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path)
    await office.asked_and_cut_off(fresh)
    async with opened(tmp_path / "other", name="other") as other:
        assert await finish_joining(fresh.data_dir, other.address) is None
        done = await fresh.join(other, await other.phrase())
        assert done.identity.grid_name == "other"


async def test_a_new_phrase_also_finishes_a_join_of_the_same_server(office: Office, tmp_path: Path) -> None:
    fresh = Fresh(tmp_path)
    first = await office.asked_and_cut_off(fresh)
    identity.note_asking(fresh.data_dir, office.address, authority.create_ca("x", now_ms=0).cert_pem)
    done = await fresh.join(office, await office.phrase())
    assert done.identity.server == first and office.names() == ["a", "b"]
    with office.grid.view() as db:
        row = server(db, ServerId(first))
        assert row is not None and row.state is ServerState.JOINING and len(servers(db)) == 2
