"""Templates as commands: what may be asked for, what a change says, what publishing and breaking do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.grid.envelope import Applied, Command, Outcome
from kmgr.grid.queries import events
from kmgr.grid.store import Store
from kmgr.ids import CommandId, TemplateId
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.replica.queries import images, versions
from kmgr.templates.commands import LIMITS
from kmgr.templates.model import Refresh, Template
from kmgr.templates.queries import template, template_by_name, templates
from tests.lab.outcomes import rejected
from tests.lab.people import SERVERS, added

TPL = TemplateId("tpl-1")
SHAPE = {"notes": "", "vcpus": 2, "memory_mib": 2048, "standby": 2, "maximum": 10, "refresh": "on_logout"}


class Desk:
    """Applies commands to a state with two golden images: `debian` with two versions, `other` with one."""

    def __init__(self, store: Store) -> None:
        self.db = store.writer
        self.at = 1_000
        self.do("server.add", **added(SERVERS[0]))
        for image in ("debian", "other"):
            self.do("image.create", image=f"img-{image}", name=image, notes="")
        for version, image in (("ver-1", "debian"), ("ver-2", "debian"), ("ver-x", "other")):
            self.do(
                "version.add", version=version, image=f"img-{image}", notes="", server=SERVERS[0], size_bytes=1 << 20,
                used_bytes=4096, block_bytes=1 << 18, manifest_hash=version[-1].replace("x", "f") * 64,
            )  # fmt: skip

    def do(self, type: str, **fields: Any) -> Outcome:
        self.at += 1
        return APPLIERS[type](self.db, Command(type, CommandId("cmd"), self.at, "root", fields))

    def create(self, name: str = "office", **changed: Any) -> Outcome:
        fields = {"template": TPL, "name": name, "image": "img-debian", "version": "ver-1", **SHAPE, **changed}
        return self.do("template.create", **fields)

    def update(self, **changes: Any) -> Outcome:
        return self.do("template.update", template=TPL, **changes)

    @property
    def template(self) -> Template:
        found = template(self.db, TPL)
        assert found is not None
        return found

    def told(self) -> list[str]:
        return [event.text for event in events(self.db, subject=TPL)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = Store(tmp_path / "state.sqlite", SCHEMAS)
    store.guard()
    yield Desk(store)
    store.close()


def test_a_template_is_made_and_found_by_id_and_name(desk: Desk) -> None:
    assert desk.create() == Applied({"template": TPL})
    made = desk.template
    assert (made.name, made.version, made.refresh, made.enabled) == ("office", "ver-1", Refresh.ON_LOGOUT, True)
    assert (made.vcpus, made.memory_mib, made.standby, made.maximum) == (2, 2048, 2, 10)
    assert template_by_name(desk.db, "office") == made
    assert templates(desk.db) == (made,)
    assert template_by_name(desk.db, "lab") is template(desk.db, TemplateId("tpl-2")) is None


def test_two_templates_cannot_have_one_name(desk: Desk) -> None:
    desk.create()
    assert "already a template named office" in rejected(desk.create(template="tpl-2"), "conflict")


def test_two_templates_cannot_have_one_id(desk: Desk) -> None:
    desk.create()
    assert TPL in rejected(desk.create(name="another"), "conflict")


@pytest.mark.parametrize("name", ["", "Office", "-a", "a-", "a_b", "a.b", "büro", "a" * 41, "a\n"])
def test_a_name_that_is_no_host_name_is_refused(desk: Desk, name: str) -> None:
    assert "host name" in rejected(desk.create(name), "refused")


@pytest.mark.parametrize("name", ["a", "7", "a-b", "a" * 40])
def test_a_host_name_is_fine(desk: Desk, name: str) -> None:
    assert isinstance(desk.create(name), Applied)


@pytest.mark.parametrize("field", sorted(LIMITS))
def test_every_quantity_has_limits(desk: Desk, field: str) -> None:
    least, most, unit = LIMITS[field]
    for wrong in (least - 1, most + 1, True, "2", 2.0, None):
        changed: dict[str, Any] = {field: wrong}
        assert unit in rejected(desk.create(**changed), "refused")
    desk.create(standby=0)
    for wrong in (least - 1, most + 1):
        assert unit in rejected(desk.update(**{field: wrong}), "refused")
    for right in (most, least):
        assert desk.update(**{"standby": 0, "maximum": 1000, field: right}) == Applied()


def test_more_standby_than_the_maximum_cannot_be(desk: Desk) -> None:
    assert "more than the maximum of 1" in rejected(desk.create(standby=2, maximum=1), "refused")
    desk.create(standby=2, maximum=2)
    assert "maximum of 1" in rejected(desk.update(maximum=1), "refused")
    assert desk.update(maximum=1, standby=1) == Applied()


def test_a_policy_that_does_not_exist_is_refused(desk: Desk) -> None:
    assert "or manual or never" in rejected(desk.create(refresh="sometimes"), "refused")


@pytest.mark.parametrize(
    ("changed", "word"), [({"version": "ver-9"}, "no version ver-9"), ({"version": "ver-x"}, "no version ver-x")]
)
def test_a_version_must_be_one_of_the_golden_images(desk: Desk, changed: dict[str, str], word: str) -> None:
    assert word in rejected(desk.create(**changed), "refused")
    desk.create()
    assert word in rejected(desk.do("template.publish", template=TPL, **changed), "refused")


def test_a_change_tells_what_was_and_what_is_and_nothing_if_nothing_changed(desk: Desk) -> None:
    desk.create()
    assert desk.update(memory_mib=4096, standby=2) == Applied()
    changed_at = desk.template.changed_at
    assert desk.told()[0] == "template office changed: memory mib 2048 → 4096"
    assert desk.update(memory_mib=4096) == Applied()
    assert len(desk.told()) == 2
    assert desk.template.changed_at == changed_at


@pytest.mark.parametrize("changed", [{"enabled": "x"}, {"enabled": None}, {"enabled": 7}, {"notes": None}])
def test_a_value_of_another_kind_is_refused(desk: Desk, changed: dict[str, Any]) -> None:
    desk.create()
    assert "true or false" in rejected(desk.update(**changed), "refused")


def test_switching_off_and_on(desk: Desk) -> None:
    desk.create()
    desk.update(enabled=False)
    assert not desk.template.enabled
    desk.update(enabled=True)
    assert desk.template.enabled


@pytest.mark.parametrize("field", ["name", "image", "version", "broken_cause", "next_number", "id = 'x' --"])
def test_what_may_not_be_changed_this_way_is_refused(desk: Desk, field: str) -> None:
    desk.create()
    assert field in rejected(desk.update(**{field: "x"}), "refused")


@pytest.mark.parametrize(
    ("type", "fields"),
    [
        ("template.update", {}),
        ("template.publish", {"version": "ver-1"}),
        ("template.broken", {"version": "ver-1", "cause": "x"}),
        ("template.mend", {}),
        ("template.delete", {}),
    ],
)
def test_a_template_that_is_gone_is_told(desk: Desk, type: str, fields: dict[str, str]) -> None:
    assert "no template tpl-1" in rejected(desk.do(type, template=TPL, **fields), "not_found")


def test_publishing_moves_the_version_once_and_mends(desk: Desk) -> None:
    desk.create()
    desk.do("template.broken", template=TPL, version="ver-1", cause="kernel panic")
    for _ in range(2):
        assert desk.do("template.publish", template=TPL, version="ver-2") == Applied()
    assert (desk.template.version, desk.template.broken_cause) == ("ver-2", "")
    assert desk.told().count("template office published version 2") == 1


def test_publishing_the_same_version_again_mends_a_broken_template(desk: Desk) -> None:
    desk.create()
    desk.do("template.broken", template=TPL, version="ver-1", cause="kernel panic")
    assert desk.do("template.publish", template=TPL, version="ver-1") == Applied()
    assert desk.template.broken_cause == ""


def test_a_template_breaks_once_and_is_mended_once(desk: Desk) -> None:
    desk.create()
    for cause in ("kernel panic", "another one"):
        assert desk.do("template.broken", template=TPL, version="ver-1", cause=cause) == Applied()
    assert desk.template.broken_cause == "kernel panic"
    assert sum("not refilled any more" in text for text in desk.told()) == 1
    for _ in range(2):
        assert desk.do("template.mend", template=TPL) == Applied()
    assert desk.template.broken_cause == ""
    assert sum("refilled again" in text for text in desk.told()) == 1


def test_a_stale_verdict_breaks_no_newer_version(desk: Desk) -> None:
    desk.create()
    desk.do("template.publish", template=TPL, version="ver-2")
    stale = desk.do("template.broken", template=TPL, version="ver-1", cause="kernel panic")
    assert "another version by now" in rejected(stale, "conflict")
    assert desk.template.broken_cause == ""


def test_a_golden_image_in_use_stays_and_goes_with_everything_of_it_afterwards(desk: Desk) -> None:
    desk.create()
    assert "used by office" in rejected(desk.do("image.delete", image="img-debian"), "conflict")
    desk.do("template.delete", template=TPL)
    assert desk.do("image.delete", image="img-debian") == Applied()
    assert [image.name for image in images(desk.db)] == ["other"]
    assert [version.id for version in versions(desk.db)] == ["ver-x"]
    assert "no golden image" in rejected(desk.do("image.delete", image="img-debian"), "not_found")
