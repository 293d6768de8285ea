"""No command that a person or a server can send stops the grid: each is applied or rejected, never a bug.

An exception in an applier stops every server, because all of them apply the same
log. So commands with plausible fields that are stale, doubled, of other things or
of another kind follow each other in any order on a state that has some of everything.
"""

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kmgr.grid.digest import digest
from kmgr.grid.envelope import Applied, Command, Rejected, decode, encode
from kmgr.grid.settle import SETTLE
from kmgr.ids import CommandId, ServerId
from kmgr.registry import APPLIERS, ISLAND
from tests.lab.state import State

HUGE, HASH = 1 << 40, "a" * 64
SERVERS = ("srv-a", "srv-b", "srv-lost", "srv-joining", "srv-gone", "srv-wit", "srv-none", "")
NAMES = ("anna", "root", "berta", "nobody", "Anna ", "", "office", "a", "b", "gone")
TEXTS = ("", "some words", "x" * 300, "naïve\x00", "office")

# What a field may hold, by its name: mostly the first, else things that are there or not, and what is just odd.
FIELDS: Mapping[str, tuple[Any, ...]] = {
    "server": SERVERS,
    "desktop": (*(f"dsk-{n}" for n in range(1, 9)), "dsk-new", "dsk-none", *(f"dsk-p{n}" for n in range(1, 5))),
    "desktops": (["dsk-p1"], [], ["dsk-none", 3], "dsk-p1"),
    "trouble": ("guest_silent", "none of this release", ""),
    "against": (True, False, "no"),
    "lose": ("anna", "nobody", None),
    "lost_at": (0, 7),
    "minutes": (30, 1, 0, -1, HUGE, True, "5"),
    "until": (0, 1_000, HUGE, None),
    "target": SERVERS,
    "as_of": (900, 0, -1, HUGE, None, "1"),
    "points": (
        [{"desktop": "dsk-p1", "generation": 1, "server": "srv-b", "as_of": 900, "bytes": 5}],
        [],
        [
            {"desktop": "dsk-p1"},
            "dsk-p1",
            {"desktop": "dsk-p3", "generation": 1, "server": [], "as_of": 1, "bytes": 1},
        ],
    ),
    "template": ("tpl-office", "tpl-off", "tpl-broken", "tpl-new", "tpl-none"),
    "version": ("ver-1", "ver-2", "ver-9", "ver-none"),
    "image": ("img-1", "img-2", "img-none"),
    "invitation": ("inv-1", "inv-2", "inv-none"),
    "directory": ("corp", "none", "built-in", ""),
    "name": NAMES,
    "user": NAMES,
    "subject": (*NAMES, "staff"),
    "kind": ("user", "group", "everyone", "cat"),
    "hash": ("h-1", "h-2", "h-old", "h-none"),
    "role": ("user", "admin", "king", "server", "witness"),
    "groups": ([], ["staff"], ["staff", "staff"], "staff"),
    "disabled": (True, False, "yes"),
    "enabled": (True, False, 1, "yes"),
    "refresh": ("on_logout", "never", "manual", ""),
    "generation": (1, 0, 2, 3),
    "state": ("placed", "ready", "in_use", "retired"),
    "server_state": ("up", "lost"),
    "running": (["srv-a", "srv-b"], [], ["srv-none"]),
    "although": ([], ["it is the last one"]),
    "at": (0, 1_001, HUGE),
    "expires_at": (HUGE, 0, 1_500),
    "tries": (0, 1, 5),
    "wait_s": (0, 60),
    "epoch": (0, 1, 2),
    "address": ("", "10.0.0.9/24", "10.0.0.9", "nowhere", "::1/128"),
    "vcpus": (1, 0, HUGE, "1", True),
    "memory_mib": (64, 1, 1024, None),
    "standby": (0, 2, -1, 2_000),
    "maximum": (10, 0, 2, -1),
    "size_bytes": (1, 1 << 20, 0, -1, True),
    "used_bytes": (0, 4096, -1),
    "block_bytes": (1 << 18, 0),
    "manifest_hash": (HASH, "b" * 64, "c" * 64, "short"),
    "copies": (2, 0, 1, -1, HUGE, True, "2"),
    "parent": ("tpl-office", "", "tpl-none", 3),
    "purpose": ("edit", "test", "use", 3),
    "keep": (True, False, "yes"),
    "publish": ({"canary": 1}, {}, None, "at once", {"canary": "x", "image": 3}),
    "new_template": ("fresh", None, "office", "Not A Name", 5),
    "canary": (1, 0, 3, -1, HUGE, True, "2"),
    "canary_percent": (0, 50, 101, None),
    "watch_s": (60, 1, 0, HUGE, "1"),
    "patience_s": (900, 1, 0, None),
    "by_hand": (False, True, "yes"),
    "tag": ("stable", "head", "default", "", "Not One", 3, None),
    "soft_at": (None, 0, 1_005, HUGE, "1", True),
    "hard_at": (None, 1_005, HUGE, -1),
    "stand": ("expired", "ended", "published", "odd", None),
    "offset": (0, 4096, HUGE, None),
    "blocks": (1, 0, 3, -1, "1"),
    "sources": (["srv-b"], [], ["srv-none"]),
    "liar": SERVERS,
    "urls": (["ldaps://dc1.corp.example"], [], ["http://x"]),
    "start_tls": (True, False),
    "bind_name": ("{name}@corp", "nobody"),
    "user_filter": ("(uid={name})", ""),
    "value": (300, 0, 1_000, 8_000, 600_000, "1", None),
    "how": ("recovered", "restored"),
    "grid_address": ("srv-a", "srv-new:7400", ""),
    "outbox": ("out-1", "out-2"),
    "zone": ("Europe/Berlin", "UTC", "", "../etc/passwd", None, 3),
    "text": ("Save your work, please.", "", "x" * 501, 3, None),
    "left": (True, False, 1),
    "connected_at": (None, 1_001, "1"),
    "disconnected_at": (None, 1_002, HUGE),
    "whom": ("user", "member", "group", "cat", 3),
    "most": (1, 0, -1, HUGE, "1", True),
    "drivers": ("ver-iso", "ver-1", "", 3),
    "variables": ("", "AAAA", 3),
    "policy": (
        {"keep_s": 600},
        {},
        {"idle_s": 1, "colour": []},
        {"calendar": [{"days": ["mon"], "start": "08:00", "end": "16:00", "standby": 3}, None]},
        "strict",
        None,
    ),
    "connected": ([], ["dsk-1"]),
    "over": (None, 3),
    "web_address": TEXTS,
    "fingerprint": ("", "f", "g"),
    "key": ("", "k", "k-joining"),
}
SETTINGS = ("heartbeat_ms", "lost_after_ms", "replace_voter_after_s", "session_hours", "none")

REPORT = "desktop generation server"
ADDED = "server name grid_address web_address version fingerprint ?role"
SHAPE = "vcpus memory_mib standby maximum refresh"
# The fields of every command, as its applier tells them; those with a question mark may be missing.
BODIES: Mapping[str, str] = {
    "grid.create": "grid name ca_cert_pem ca_key_sealed",
    "server.add": ADDED,
    "server.announce": "server grid_address web_address version fingerprint",
    "server.up": "server",
    "server.lost": "server",
    "server.drain": "server ?running ?although",
    "server.undrain": "server",
    "server.remove": "server ?running ?although",
    "invitation.create": "invitation sealed expires_at tries",
    "invitation.try": "invitation",
    "invitation.proved": "invitation",
    "invitation.failed": "invitation remote",
    "invitation.redeem": "invitation newcomer",
    "setting.set": "setting value",
    "grid.recover": "epoch server name how",
    "grid.address": "address",
    "grid.zone": "zone",
    "image.create": "image name notes",
    "image.delete": "image",
    "version.add": "version image size_bytes used_bytes block_bytes manifest_hash notes server",
    "version.here": "version server",
    "version.gone": "version server ?why",
    "version.repaired": "version server file offset blocks sources",
    "version.damaged": "version server file offset blocks",
    "version.lied": "version server liar",
    "version.delete": "version",
    "version.collect": "version",
    "version.drop": "version server",
    "image.copies": "image copies",
    "image.kind": "image kind",
    "template.create": f"template name notes image version {SHAPE} ?parent ?policy",
    "template.install": f"template name notes image version iso {SHAPE} ?parent ?policy ?drivers",
    "template.update": "template ?notes ?vcpus ?memory_mib ?standby ?maximum ?refresh ?enabled ?name ?policy",
    "template.publish": "template version ?notes ?canary ?canary_percent ?watch_s ?patience_s ?image",
    "template.canary_passed": "template version",
    "template.canary_stopped": "template version step cause ?by_hand",
    "template.roll_back": "template ?version",
    "template.tag": "template tag version",
    "template.untag": "template tag",
    "template.expiry": "template version soft_at hard_at",
    "template.expire": "template version stand",
    "template.broken": "template version cause",
    "template.mend": "template",
    "template.delete": "template",
    "desktop.move": f"{REPORT} target why",
    "desktop.moved": f"{REPORT} target",
    "desktop.move_failed": f"{REPORT} cause",
    "desktop.place": "desktop template version server",
    "desktop.building": REPORT,
    "desktop.ready": REPORT,
    "desktop.failed": f"{REPORT} step cause ?trouble ?against",
    "desktop.claim": "user template ?groups",
    "desktop.ask": "user template ?groups",
    "quota.set": "whom subject template most",
    "quota.drop": "whom subject template",
    "desktop.unask": "user template at",
    "desktop.release": "desktop user",
    "desktop.retire": "desktop why ?generation ?state ?server_state ?lose",
    "desktop.removed": REPORT,
    "desktop.forget": "desktop",
    "desktop.stray": "desktop server",
    "desktop.retry": "desktop",
    "desktop.connected": REPORT,
    "desktop.disconnected": REPORT,
    "desktop.outfitted": REPORT,
    "desktop.message": "desktop user text",
    "desktop.over": "desktop user generation connected_at disconnected_at why",
    "desktop.take_over": "desktop generation server lost_at target",
    "desktop.bench": "desktop template version server purpose user",
    "desktop.capture": "desktop version image notes ?keep ?publish ?new_template",
    "desktop.captured": f"{REPORT} version ?variables",
    "desktop.capture_failed": f"{REPORT} version step cause",
    "copy.assign": "desktop generation server",
    "copy.points": "server points",
    "copy.promoted": "desktop generation server as_of",
    "copy.drop": "desktop server generation",
    "copy.dropped": "desktop server generation",
    "desktop.put_back": "desktop generation server disk",
    "desktop.put_aside": "desktop generation server ?lost_at",
    "desktop.put_in_place": "desktop generation server",
    "drain.begin": "server minutes ?running ?although",
    "drain.notice": "server minutes",
    "drain.tell": REPORT,
    "drain.end": f"{REPORT} until",
    "drain.leave": f"{REPORT} target ?left ?connected_at ?disconnected_at",
    "tenure.begin": "server tenure",
    "tenure.give_back": "server tenure",
    "tenure.end": "server",
    "copy.alarm": "server desktops cause over",
    "copy.still": "server desktops over",
    "account.create": "name display_name role groups password_hash",
    "account.update": "name ?display_name ?role ?groups ?disabled ?password_hash",
    "account.password": "name password_hash",
    "account.delete": "name",
    "assignment.add": "template kind subject",
    "assignment.remove": "template kind subject",
    "session.open": "hash name display_name groups role source address server expires_at",
    "session.renew": "hash expires_at",
    "session.close": "hash",
    "session.close_all": "name",
    "session.expire": "",
    "login.failed": "name tries wait_s",
    "directory.set": "directory urls base_dn user_filter bind_name ca_pem start_tls admin_group",
    "directory.remove": "directory",
    SETTLE: "server outbox connected over facts",
}

# What fits where it is not what fits most commands.
FITTING = {
    ("desktop.place", "desktop"): "dsk-new",
    ("desktop.building", "desktop"): "dsk-1",
    ("desktop.ready", "desktop"): "dsk-2",
    ("desktop.failed", "desktop"): "dsk-2",
    ("desktop.removed", "desktop"): "dsk-6",
    ("desktop.retry", "desktop"): "dsk-5",
    ("desktop.forget", "desktop"): "dsk-7",
    ("desktop.connected", "desktop"): "dsk-4",
    ("desktop.disconnected", "desktop"): "dsk-4",
    ("desktop.over", "desktop"): "dsk-4",
    ("drain.tell", "desktop"): "dsk-4",
    ("drain.end", "desktop"): "dsk-4",
    ("desktop.take_over", "desktop"): "dsk-p2",
    ("desktop.take_over", "server"): "srv-lost",
    ("copy.assign", "desktop"): "dsk-p2",
    ("copy.assign", "server"): "srv-a",
    ("copy.promoted", "desktop"): "dsk-p3",
    ("copy.drop", "desktop"): "dsk-p3",
    ("copy.drop", "server"): "srv-b",
    ("copy.drop", "generation"): 0,
    ("copy.dropped", "desktop"): "dsk-none",
    ("copy.dropped", "server"): "srv-gone",
    ("template.create", "template"): "tpl-new",
    ("template.create", "name"): "fresh",
    ("template.install", "template"): "tpl-new",
    ("template.install", "name"): "fresh",
    ("template.install", "image"): "img-blank",
    ("template.install", "version"): "ver-blank",
    ("template.install", "iso"): "ver-iso",
    ("image.kind", "image"): "img-2",
    ("image.kind", "kind"): "iso",
    ("desktop.bench", "desktop"): "dsk-new",
    ("desktop.capture", "desktop"): "dsk-8",
    ("desktop.capture", "version"): "ver-new",
    ("desktop.capture", "image"): "image1",
    ("desktop.captured", "desktop"): "dsk-4",
    ("desktop.captured", "version"): "ver-2",
    ("desktop.capture_failed", "desktop"): "dsk-4",
    ("desktop.capture_failed", "version"): "ver-2",
    ("template.canary_passed", "template"): "tpl-broken",
    ("template.canary_passed", "version"): "ver-2",
    ("template.canary_stopped", "template"): "tpl-broken",
    ("template.canary_stopped", "version"): "ver-2",
    ("account.create", "name"): "berta",
    ("invitation.create", "invitation"): "inv-2",
    ("image.create", "image"): "img-3",
    ("version.add", "version"): "ver-3",
    ("version.add", "manifest_hash"): "c" * 64,
    ("server.add", "server"): "srv-new",
    ("server.add", "grid_address"): "srv-new:7400",
    ("session.open", "hash"): "h-3",
}

# Fields that share their name with others but hold something else.
NAMED = {
    ("invitation.redeem", "newcomer"): "server",
    ("setting.set", "setting"): "name",
    ("desktop.capture", "new_template"): "template",
}


def grid() -> State:
    """Return a grid that has some of everything, in every state."""
    state = State()
    for name, stands in (
        ("a", "up"),
        ("b", "draining"),
        ("lost", "lost"),
        ("joining", "joining"),
        ("gone", "removed"),
    ):
        state.server(name, stands)
    state.db.execute("update servers set key_hash = 'k-joining' where id = 'srv-joining'")
    state.witness("wit")
    for image in (1, 2):
        state.do("image.create", image=f"img-{image}", name=f"image{image}", notes="")
    sizes = {"size_bytes": 1 << 20, "used_bytes": 4096, "block_bytes": 1 << 18, "notes": "", "server": "srv-a"}
    state.do("version.add", version="ver-1", image="img-1", manifest_hash=HASH, **sizes)
    state.do("version.add", version="ver-2", image="img-1", manifest_hash="b" * 64, **sizes)
    for digit, kind in (("8", "iso"), ("9", "blank")):
        state.do("image.create", image=f"img-{kind}", name=kind, notes="")
        state.do("image.kind", image=f"img-{kind}", kind=kind)
        state.do("version.add", version=f"ver-{kind}", image=f"img-{kind}", manifest_hash=digit * 64, **sizes)
    state.template("office", next_number=1)
    state.template("off", enabled=0)
    state.template("broken", broken_cause="it does not boot")
    state.template("none-left", version="ver-9")
    personal(state)
    for n, stands in enumerate(("placed", "building", "ready", "in_use", "broken", "retired", "ready", "in_use"), 1):
        made = state.desktop("tpl-office", ServerId("srv-a" if n < 7 else "srv-lost"), stands)
        # Some names of an earlier template of this name are still taken.
        state.db.execute("update desktops set id = ?, name = ? where id = ?", [f"dsk-{n}", f"office-{n}", made])
    for name, role in (("root", "admin"), ("anna", "user")):
        plain = {"display_name": name, "role": role, "groups": ["staff"], "password_hash": "p"}
        state.do("account.create", name=name, **plain)
        session = {"source": "built-in", "address": "10.0.0.1", "server": "srv-a", "expires_at": HUGE}
        state.do("session.open", hash="h-1" if role == "user" else "h-2", name=name, **{**plain, **session})
    state.do("assignment.add", template="tpl-office", kind="user", subject="anna")
    state.do("invitation.create", invitation="inv-1", sealed="s", expires_at=HUGE, tries=5)
    state.do("desktop.ask", user="berta", template="tpl-broken")
    state.do("template.publish", template="tpl-broken", version="ver-2", canary=2)
    state.do("template.tag", template="tpl-office", version="ver-1", tag="stable")
    captured(state, "dsk-4", template="made-of-it")
    state.db.execute("update desktops set user = 'test' where id = 'dsk-8'")
    return state


def captured(state: State, desktop: str, **how: Any) -> None:
    """Let a version be wanted of a desktop in use."""
    asked = json.dumps({"publish": None, "template": None, "keep": False, **how})
    state.db.execute(
        "insert into captures (desktop, generation, server, version, image, notes, how, by, at, state, step, cause)"
        " values (?, 1, 'srv-a', 'ver-2', 'image1', '', ?, 'anna', 0, 'wanted', '', '')",
        [desktop, asked],
    )


def personal(state: State) -> None:
    """Add personal desktops and copies of them in every state."""
    state.template("own", kind="personal")
    made = (
        ("p1", "srv-a", "in_use"),
        ("p2", "srv-lost", "in_use"),
        ("p3", "srv-a", "broken"),
        ("p4", "srv-a", "ready"),
    )
    for name, server, stands in made:
        old = state.desktop("tpl-own", ServerId(server), stands)
        values = [f"dsk-{name}", f"own-{name}", "anna" if name != "p4" else None, old]
        state.db.execute("update desktops set id = ?, name = ?, kind = 'personal', user = ? where id = ?", values)
    for desktop, server, generation, stands, as_of in (
        ("dsk-p1", "srv-b", 1, "wanted", None),
        ("dsk-p2", "srv-a", 1, "ready", 800),
        ("dsk-p3", "srv-b", 0, "superseded", None),
        ("dsk-p3", "srv-a", 2, "starting", 700),
        ("dsk-none", "srv-gone", 1, "dropping", 600),
    ):
        state.db.execute(
            "insert into copies (desktop, server, generation, state, as_of, bytes, changed_at)"
            " values (?, ?, ?, ?, ?, 0, 0)",
            [desktop, server, generation, stands, as_of],
        )
    taken = ["dsk-p3", 1, "srv-lost", "srv-a", 900, 950]
    state.db.execute("insert into take_overs values (?, ?, ?, ?, ?, ?, null)", taken)


def values(field: str, type: str) -> st.SearchStrategy[Any]:
    """Return what a field of a command may hold."""
    if field == "newcomer":
        return filled(f"{ADDED} key", "server.add")
    if field == "facts":
        return st.lists(facts(), max_size=3)
    if field == "setting":
        return st.sampled_from(SETTINGS)
    among = FIELDS.get(field, TEXTS)
    return st.sampled_from((*[FITTING.get((type, field), among[0])] * 2 * len(among), *among))


@st.composite
def filled(draw: st.DrawFn, fields: str, type: str) -> dict[str, Any]:
    """Draw a body of these fields."""
    body = {}
    for field in fields.split():
        plain = field.lstrip("?")
        if plain == field or draw(st.booleans()):
            body[NAMED.get((type, plain), plain)] = draw(values(plain, type))
    return body


DONE_ALONE = ("session.close", "session.close_all", "session.expire", "login.failed", "desktop.retire")


@st.composite
def facts(draw: st.DrawFn) -> dict[str, Any]:
    """Draw something that a server did while it was cut off."""
    what = draw(st.sampled_from(DONE_ALONE))
    body = draw(filled(BODIES[what], what))
    record = {"session.close": {"hash": body.get("hash")}, "session.close_all": {"name": body.get("name")}}.get(what)
    if what == "desktop.retire":
        record = {"desktop": body["desktop"], "generation": 1, "row": None, "knew": []}
    n = draw(st.integers(1, 4))
    return {
        "n": n, "type": what, "id": f"fact-{n}", "at": 900, "by": "anna", "body": body, "made": {},
        "lines": [["desktop", "dsk-1", "something happened"]], "about": f"{what}:{n}", "values": record,
    }  # fmt: skip


def command(type: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return filled(BODIES[type], type).map(lambda body: (type, body))


def apply(state: State, type: str, body: Mapping[str, Any], *, alone: bool = False) -> None:
    """Apply one as the state machine does and look at what it left behind."""
    state.at += 1
    before = digest(state.db)
    # As it comes out of the log: JSON, nothing finer.
    told = decode(encode(Command(type, CommandId(f"cmd-{state.at}"), state.at, "test", body)))
    rule = ISLAND.get(type)
    applier = (rule.apply if alone and rule else None) or APPLIERS[type]
    state.db.conn.execute("savepoint entry")
    outcome = applier(state.db, told)
    assert isinstance(outcome, Applied | Rejected)
    if isinstance(outcome, Rejected):
        assert outcome.code
        assert outcome.detail
        state.db.conn.execute("rollback to entry")
        assert digest(state.db) == before, f"{type} was rejected and left something behind"
    state.db.conn.execute("release entry")


def test_every_command_is_among_them() -> None:
    assert set(BODIES) == set(APPLIERS)


@given(sent=st.lists(st.sampled_from(sorted(BODIES)).flatmap(command), max_size=12), alone=st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_command_is_a_bug(sent: list[tuple[str, dict[str, Any]]], alone: bool) -> None:
    state = grid()
    for what, body in sent:
        apply(state, what, body, alone=alone)
