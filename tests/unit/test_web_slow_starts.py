"""What the console says about desktops that boot although they could be restored."""

from dataclasses import replace

from kmgr.grid.model import Vitals
from kmgr.ids import ServerId, TemplateId, VersionId
from kmgr.web.present_warm import checked, reasons

T = TemplateId("tpl")
ONE, TWO, GONE = ServerId("srv-1"), ServerId("srv-2"), ServerId("srv-3")


def vitals(server: ServerId, warm: object) -> Vitals:
    plain = Vitals(server=server, heard_at=0.0)
    return replace(plain, extra={"warm": warm})


def test_each_reason_comes_with_the_servers_that_gave_it() -> None:
    notes = {"notes": {T: "its guest agent does not do guest-exec"}}
    heard = {ONE: vitals(ONE, notes), TWO: vitals(TWO, notes), GONE: vitals(GONE, notes)}
    assert reasons(heard, {TWO: "b", ONE: "a"}, T) == [
        {"why": "its guest agent does not do guest-exec", "servers": ["a", "b"], "again": False}
    ]
    assert reasons(heard, {ONE: "a"}, TemplateId("other")) == []


def test_where_it_is_not_tried_any_more_it_can_be_tried_again() -> None:
    notes = {"notes": {T: "no"}}
    heard = {ONE: vitals(ONE, notes), TWO: vitals(TWO, {**notes, "stopped": [T]})}
    assert reasons(heard, {TWO: "b", ONE: "a"}, T) == [{"why": "no", "servers": ["a", "b"], "again": True}]


def test_what_a_server_of_another_version_sends_does_not_break_the_page() -> None:
    for odd in (None, "x", {}, {"notes": 5}, {"notes": {T: 7}}):
        assert reasons({ONE: vitals(ONE, odd)}, {ONE: "a"}, T) == []


def test_on_how_many_servers_clones_of_a_version_were_checked_is_said() -> None:
    names, v1 = {ONE: "a", TWO: "b", GONE: "c"}, VersionId("ver-1")
    heard = {one: vitals(one, {"checked": ["ver-1"] if one != GONE else []}) for one in names}
    assert checked(heard, names, v1) == "instant clones: checked on 2 of 3 servers"
    assert checked(heard, {ONE: "a"}, v1) == "instant clones: checked on 1 of 1 server"
    assert "not checked yet" in checked(heard, names, VersionId("ver-2"))
    assert checked({ONE: vitals(ONE, None)}, names, v1) == "", "a server that restores none has nothing to say"
