"""A template's versions as commands: publish, canary, go back, tags, dates; what is refused, what history says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.grid.envelope import Applied, Outcome
from kmgr.grid.queries import events
from kmgr.grid.store import Store
from kmgr.ids import TemplateId
from kmgr.registry import SCHEMAS
from kmgr.templates.queries import templates
from kmgr.templates.version_queries import canaries, rollouts, tags, template_versions
from kmgr.templates.versions import Rollout, Stand, TemplateVersion, tags_of
from tests.lab.outcomes import rejected as rejected_as
from tests.unit.test_templates_commands import TPL, Desk

HUGE = 1 << 40


def refused(outcome: Outcome) -> str:
    """Return why something was refused."""
    return rejected_as(outcome, "refused")


class Line(Desk):
    """That desk with the template `office` of debian's first version."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.create()

    def publish(self, version: str = "ver-2", **more: Any) -> Any:
        return self.do("template.publish", template=TPL, version=version, **more)

    def of(self, version: str) -> TemplateVersion:
        return next(one for one in template_versions(self.db, TPL) if one.version == version)

    def stands(self) -> dict[str, str]:
        return {one.version: str(one.stand) for one in template_versions(self.db, TPL)}

    def alarms(self) -> list[str]:
        return [event.text for event in events(self.db, kind="alarm")]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    store = Store(tmp_path / "state.sqlite", SCHEMAS)
    store.guard()
    yield Line(store)
    store.close()


def test_a_new_template_begins_with_a_version_of_its_author(line: Line) -> None:
    first = line.of("ver-1")
    assert (first.number, first.author, first.stand) == (1, "root", Stand.PUBLISHED)
    assert first.default_at == first.at


def test_publishing_makes_a_version_with_notes(line: Line) -> None:
    assert line.publish(notes="with the new browser") == Applied()
    assert line.of("ver-2").notes == "with the new browser"
    assert line.template.version == "ver-2"
    assert line.stands() == {"ver-1": "published", "ver-2": "published"}


def test_head_and_default_follow_and_named_tags_stay(line: Line) -> None:
    line.do("template.tag", template=TPL, tag="exam", version="ver-1")
    line.publish(canary=1)
    shown = tags_of(template_versions(line.db, TPL), line.template.version, tags(line.db)[TPL])
    assert shown == {"ver-1": ("default", "exam"), "ver-2": ("head",)}
    line.do("template.canary_passed", template=TPL, version="ver-2")
    shown = tags_of(template_versions(line.db, TPL), line.template.version, tags(line.db)[TPL])
    assert shown == {"ver-1": ("exam",), "ver-2": ("default", "head")}


@pytest.mark.parametrize("tag", ["head", "default", "", "Not One", 3, "x" * 40, None])
def test_words_that_cannot_be_tags(line: Line, tag: object) -> None:
    assert "tag" in refused(line.do("template.tag", template=TPL, tag=tag, version="ver-1"))


def test_only_a_version_of_the_template_can_have_its_tag(line: Line) -> None:
    assert "never published" in refused(line.do("template.tag", template=TPL, tag="a", version="ver-x"))
    line.do("template.tag", template=TPL, tag="a", version="ver-1")
    for _ in range(2):
        assert line.do("template.untag", template=TPL, tag="a") == Applied()
    assert tags(line.db) == {}


def test_with_a_canary_the_default_stays_until_it_passes(line: Line) -> None:
    assert line.publish(canary=2) == Applied({"canary": True, "size": 2})
    assert (line.template.version, line.stands()["ver-2"]) == ("ver-1", "canary")
    assert rollouts(line.db)[TPL].canary == canaries(line.db)[0]
    assert line.do("template.canary_passed", template=TPL, version="ver-2") == Applied()
    assert (line.template.version, line.stands()["ver-2"]) == ("ver-2", "published")
    assert rollouts(line.db) == {}
    rejected_as(line.do("template.canary_passed", template=TPL, version="ver-2"), "conflict")


def test_a_stopped_canary_is_one_alarm_with_version_step_and_cause(line: Line) -> None:
    line.publish(canary=1)
    told = {"template": TPL, "version": "ver-2", "step": "guest", "cause": "it did not answer"}
    line.do("template.canary_stopped", **told)
    rejected_as(line.do("template.canary_stopped", **told), "conflict")
    assert line.alarms() == [
        "template office: version 2 was stopped by its canary at guest: it did not answer. Version 1 goes on"
    ]
    stopped = line.of("ver-2")
    assert (stopped.stand, stopped.step, stopped.cause) == (Stand.STOPPED, "guest", "it did not answer")
    assert line.template.version == "ver-1"
    assert rollouts(line.db) == {TPL: Rollout(None, frozenset({stopped.version}))}


def test_a_stopped_version_can_be_tried_or_published_again(line: Line) -> None:
    line.publish(canary=1)
    line.do("template.canary_stopped", template=TPL, version="ver-2", step="guest", cause="x")
    assert isinstance(line.publish(canary=1), Applied)
    assert line.stands()["ver-2"] == "canary"
    line.do("template.canary_stopped", template=TPL, version="ver-2", step="guest", cause="x")
    assert line.publish() == Applied()
    assert (line.of("ver-2").stand, line.of("ver-2").cause) == (Stand.PUBLISHED, "")


def test_publishing_at_once_ends_the_canary(line: Line) -> None:
    line.publish(canary=1)
    assert line.publish("ver-1") == Applied()
    assert line.stands() == {"ver-1": "published", "ver-2": "stopped"}
    assert (line.template.version, line.alarms()) == ("ver-1", [])


def test_a_canary_mends_a_template_whose_present_version_is_broken(line: Line) -> None:
    line.do("template.broken", template=TPL, version="ver-1", cause="kernel panic")
    line.publish(canary=1)
    assert line.template.broken_cause == "kernel panic"
    line.do("template.canary_passed", template=TPL, version="ver-2")
    assert (line.template.broken_cause, line.template.version) == ("", "ver-2")


@pytest.mark.parametrize(
    ("asked", "because"),
    [
        ({"canary": -1}, "the desktops of a canary must be"),
        ({"canary": "2"}, "the desktops of a canary must be"),
        ({"canary": True}, "the desktops of a canary must be"),
        ({"canary_percent": 101}, "the percentage of a canary must be"),
        ({"canary": 1, "canary_percent": 10}, "not both"),
        ({"canary": 1, "watch_s": 0}, "the seconds of watching of a canary must be"),
        ({"canary": 1, "patience_s": 1 << 30}, "the seconds of patience of a canary must be"),
        ({"version": "ver-x"}, "no version ver-x"),
        ({"version": "ver-none", "canary": 1}, "no version ver-none"),
        ({"version": "ver-1", "canary": 1}, "from that version already"),
        ({"notes": 3}, "notes are a text"),
    ],
)
def test_what_cannot_be_published(line: Line, asked: dict[str, Any], because: str) -> None:
    before = template_versions(line.db, TPL)
    assert because in refused(line.publish(**{"version": "ver-2", **asked}))
    assert (template_versions(line.db, TPL), canaries(line.db)) == (before, ())


def test_a_canary_needs_room_beside_the_present_version(line: Line) -> None:
    line.update(maximum=1, standby=1)
    assert "no room for a canary" in refused(line.publish(canary=1))
    line.update(maximum=9, enabled=False)
    assert "switched off" in refused(line.publish(canary=1))


def test_publishing_of_a_template_that_is_gone(line: Line) -> None:
    for command, more in (
        ("publish", {"version": "ver-2"}),
        ("roll_back", {}),
        ("canary_passed", {"version": "ver-2"}),
        ("tag", {"tag": "a", "version": "ver-1"}),
        ("untag", {"tag": "a"}),
        ("expiry", {"version": "ver-1", "soft_at": None, "hard_at": None}),
        ("expire", {"version": "ver-1", "stand": "ended"}),
    ):
        rejected_as(line.do(f"template.{command}", template=TemplateId("tpl-none"), **more), "not_found")


def test_going_back_is_one_action_and_withdraws_the_present_version(line: Line) -> None:
    assert "no version to go back to" in refused(line.do("template.roll_back", template=TPL))
    line.publish()
    assert line.do("template.roll_back", template=TPL) == Applied({"version": "ver-1"})
    assert (line.template.version, line.stands()) == ("ver-1", {"ver-1": "published", "ver-2": "withdrawn"})
    assert rollouts(line.db)[TPL].over == {"ver-2"}
    assert "no version to go back to" in refused(line.do("template.roll_back", template=TPL))
    assert line.told()[0] == "template office went back from version 2 to 1"


def test_going_back_while_a_canary_goes_on_ends_the_canary_only(line: Line) -> None:
    line.publish(canary=1)
    assert line.do("template.roll_back", template=TPL) == Applied({"version": "ver-1"})
    assert (line.template.version, line.stands()) == ("ver-1", {"ver-1": "published", "ver-2": "stopped"})
    assert canaries(line.db) == ()


def test_going_back_to_a_version_whose_image_is_gone_is_refused(line: Line) -> None:
    line.publish()
    line.db.execute("delete from versions where id = 'ver-1'")
    assert "no version ver-1" in refused(line.do("template.roll_back", template=TPL))
    assert line.template.version == "ver-2"


def test_a_template_from_before_versions_were_noted_can_be_gone_back_to(line: Line) -> None:
    line.db.execute("delete from template_versions")
    line.publish()
    assert line.do("template.roll_back", template=TPL) == Applied({"version": "ver-1"})
    assert line.template.version == "ver-1"


def test_a_version_expires_softly_then_hard(line: Line) -> None:
    line.publish()
    line.do("template.expiry", template=TPL, version="ver-2", soft_at=line.at + 1, hard_at=line.at + 5)
    for _ in range(2):
        assert line.do("template.expire", template=TPL, version="ver-2", stand="expired") == Applied()
    assert (line.stands()["ver-2"], rollouts(line.db)) == ("expired", {})
    assert "has expired" in line.template.broken_cause
    assert "has expired" in refused(line.do("template.mend", template=TPL))
    rejected_as(line.do("template.expire", template=TPL, version="ver-1", stand="ended"), "conflict")
    line.at += 5
    line.do("template.expire", template=TPL, version="ver-2", stand="ended")
    assert rollouts(line.db)[TPL].over == {"ver-2"}
    assert len(line.alarms()) == 2
    line.do("template.expiry", template=TPL, version="ver-2", soft_at=None, hard_at=HUGE)
    assert (line.stands()["ver-2"], line.template.broken_cause) == ("published", "")


def test_an_expired_version_is_neither_published_nor_gone_back_to(line: Line) -> None:
    line.do("template.expiry", template=TPL, version="ver-1", soft_at=line.at, hard_at=None)
    line.publish()
    assert "has expired" in refused(line.publish("ver-1"))
    assert "has expired" in refused(line.do("template.roll_back", template=TPL))


@pytest.mark.parametrize(("soft", "hard"), [("1", None), (True, None), (-1, None), (5, 4), (None, 1.5)])
def test_dates_that_cannot_be(line: Line, soft: object, hard: object) -> None:
    asked = line.do("template.expiry", template=TPL, version="ver-1", soft_at=soft, hard_at=hard)
    assert refused(asked)


def test_nothing_of_a_deleted_template_stays(line: Line) -> None:
    line.publish(canary=1)
    line.do("template.tag", template=TPL, tag="a", version="ver-1")
    line.do("template.delete", template=TPL)
    assert (template_versions(line.db), canaries(line.db), tags(line.db)) == ((), (), {})


def test_a_template_may_change_to_another_image_and_back(line: Line) -> None:
    line.publish("ver-x", image="img-other", canary=1)
    assert "used by office" in rejected_as(line.do("image.delete", image="img-other"), "conflict")
    line.do("template.canary_passed", template=TPL, version="ver-x")
    assert (line.template.image, line.template.version) == ("img-other", "ver-x")
    assert line.do("template.roll_back", template=TPL) == Applied({"version": "ver-1"})
    assert line.template.image == "img-debian"


def test_a_template_is_derived_from_another_one_and_survives_it(line: Line) -> None:
    assert rejected_as(line.create("child", template="tpl-2", parent="tpl-none"), "not_found")
    assert isinstance(line.create("child", template="tpl-2", parent=TPL), Applied)
    child = TemplateId("tpl-2")
    assert [one.parent for one in templates(line.db) if one.id == child] == [TPL]
    line.do("template.delete", template=TPL)
    assert [one.parent for one in templates(line.db)] == [None]
