"""Who is restored, who boots, who waits, and which memories are kept: decided from plain values."""

from dataclasses import replace

import pytest

from kmgr.ids import DesktopId, ImageId, ServerId, TemplateId, VersionId
from kmgr.provision.hypervisor import DomainSpec
from kmgr.provision.model import Desktop, Origin
from kmgr.provision.model import DesktopState as S
from kmgr.provision.warm import (
    AGAIN_S,
    CALM_S,
    MOST_TRIES,
    Standing,
    Warm,
    again_s,
    choose,
    key,
    nobody,
    sleepers,
    useless,
    why_boots,
)
from kmgr.templates.model import Kind, Refresh, Template
from kmgr.templates.policy import Clones, Devices, Policy, Seed

MISSING, MAKING, READY, UNABLE = Standing
V1, V2, T = VersionId("ver-1"), VersionId("ver-2"), TemplateId("tpl")
SPEC = DomainSpec(DesktopId("d-1"), 1, "office-1", "g", "office", 2, 512, "/d", "/v", "/l", "tcg", "user")


def desktop(number: int, state: S, **more: object) -> Desktop:
    plain = Desktop(
        id=DesktopId(f"d-{number}"), name=f"office-{number}", template=T, version=V1, server=ServerId("srv-a"),
        state=state, generation=1, vcpus=2, memory_mib=512, user=None, claimed_at=None, step="", cause="",
        created_at=number, changed_at=0, ready_at=None,
    )  # fmt: skip
    return replace(plain, **more)  # type: ignore[arg-type]


def template(**more: object) -> Template:
    plain = Template(
        id=T, name="office", notes="", image=ImageId("img"), version=V1, vcpus=2, memory_mib=512, standby=2,
        maximum=9, refresh=Refresh.ON_LOGOUT, enabled=True, broken_cause="", created_at=0, changed_at=0,
    )  # fmt: skip
    return replace(plain, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("states", "standing", "room", "held", "makes"),
    [
        ([S.PLACED], MISSING, 1, [], False),  # whoever waits gets the only place
        ([S.PLACED], MISSING, 2, [], True),
        ([S.BUILDING], MISSING, 1, [], True),
        ([S.BUILDING, S.PLACED], MISSING, 1, [2], True),  # the memory before the second
        ([S.PLACED, S.PLACED, S.PLACED], MISSING, 2, [2, 3], True),
        ([S.PLACED, S.PLACED], MAKING, 2, [1, 2], False),
        ([S.READY, S.PLACED], MISSING, 1, [2], True),
        ([S.IN_USE, S.PLACED], MISSING, 1, [], False),  # one that is taken helps nobody
        ([S.PLACED, S.PLACED], READY, 2, [], False),
        ([S.PLACED, S.PLACED], UNABLE, 2, [], False),
        ([S.READY], MISSING, 1, [], True),  # for the next ones to come
        ([S.READY], MISSING, 0, [], False),
        ([S.BROKEN, S.RETIRED], MISSING, 3, [], False),
    ],
)
def test_who_waits_for_a_memory_and_when_one_is_made(
    states: list[S], standing: Standing, room: int, held: list[int], makes: bool
) -> None:
    wanted = [desktop(number, state) for number, state in enumerate(states, 1)]
    choice = choose(wanted, {d.id: "k" for d in wanted}, {"k": standing}, room=room)
    assert choice.held == {f"d-{number}" for number in held}
    assert (choice.make is not None) is makes


def test_nobody_waits_for_a_memory_whose_last_making_failed() -> None:
    wanted = [desktop(1, S.READY), desktop(2, S.PLACED), desktop(3, S.PLACED)]
    keys = {d.id: "k" for d in wanted}
    for standing in (MISSING, MAKING):
        choice = choose(wanted, keys, {"k": standing}, room=3, doubted={"k"})
        assert choice.held == frozenset()
        assert (choice.make is None) is (standing is MAKING)
    assert choose(wanted, keys, {"k": MISSING}, room=2, doubted={"k"}).make is None, "desktops first"


def test_the_wait_grows_and_ends() -> None:
    waits = [again_s(failures) for failures in range(1, MOST_TRIES)]
    assert waits == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S]
    assert again_s(MOST_TRIES) == again_s(99) == float("inf")


def test_one_memory_is_made_at_a_time_and_for_those_who_wait_first() -> None:
    wanted = [desktop(1, S.READY), desktop(2, S.BUILDING)]
    keys = {wanted[0].id: "a", wanted[1].id: "b"}
    assert choose(wanted, keys, {}, room=3).make == wanted[1]
    assert choose(wanted, keys, {"b": MAKING}, room=3).make is None


def test_desktops_without_a_key_boot_as_before() -> None:
    wanted = [desktop(1, S.PLACED), desktop(2, S.PLACED)]
    choice = choose(wanted, {}, {}, room=1)
    assert (choice.held, choice.make) == (frozenset(), None)


def test_a_key_changes_with_whatever_the_guest_could_notice_and_with_nothing_else() -> None:
    own = key(SPEC, V1, "qemu 7")
    same = replace(
        SPEC, desktop=DesktopId("d-2"), generation=5, name="x", disk="/e", display="/w", log="/m", grid="h"
    )
    assert key(same, V1, "qemu 7") == own
    others = {
        key(SPEC, V2, "qemu 7"), key(SPEC, V1, "qemu 8"), key(replace(SPEC, memory_mib=513), V1, "qemu 7"),
        key(replace(SPEC, vcpus=1), V1, "qemu 7"), key(replace(SPEC, network="bridge:b"), V1, "qemu 7"),
        key(replace(SPEC, accelerator="kvm"), V1, "qemu 7"),
    }  # fmt: skip
    assert len(others | {own}) == 7
    assert nobody(SPEC) == nobody(same)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"policy": Policy(instant_clone=Clones.NEVER)}, "every desktop boots by itself"),
        ({"kind": Kind.PERSONAL}, "personal desktops"),
        ({"policy": Policy(seed=Seed.NOCLOUD)}, "first-boot program"),
        ({"policy": Policy(devices=Devices(clipboard=True))}, "clipboard"),
        ({}, ""),
    ],
)
def test_why_a_templates_desktops_boot(changed: dict[str, object], words: str) -> None:
    why = why_boots(template(**changed))
    assert words in why
    assert bool(why) is bool(words)


def test_a_memory_is_kept_while_a_desktop_here_or_a_published_version_can_use_it() -> None:
    one = Warm("k", V1, 2, 512)
    assert useless([one], {"k"}, []) == ()
    assert useless([one], set(), [template()]) == ()
    assert useless([one], set(), [template(version=V2)]) == ("k",)
    assert useless([one], set(), [template(memory_mib=1024)]) == ("k",)
    assert useless([one], set(), [template(enabled=False)]) == ("k",)
    assert useless([one], set(), [template(policy=Policy(instant_clone=Clones.NEVER))]) == ("k",)
    assert useless([one], set(), [], using={"k"}) == ()
    newer = Warm("k2", V1, 2, 512)
    assert useless([one, newer], {"k2"}, [template()]) == ("k",), "the hardware changed"


def test_standbys_sleep_only_by_policy_when_they_are_calm_and_nobodys() -> None:
    sleepy = [template(policy=Policy(suspend_standby=True))]
    calm = int(CALM_S * 1000)
    wanted = [
        desktop(1, S.READY), desktop(2, S.READY, origin=Origin.WARM, changed_at=calm), desktop(3, S.IN_USE),
        desktop(4, S.READY, changed_at=calm), desktop(5, S.READY, kind=Kind.PERSONAL),
    ]  # fmt: skip
    assert sleepers(wanted, sleepy, now_ms=calm) == {"d-1", "d-2"}
    assert sleepers(wanted, [template()], now_ms=calm) == frozenset()
