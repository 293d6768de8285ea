"""Nothing that anybody needs is ever collected, whatever the clock says; what nobody needs goes in the end."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kmgr.grid.envelope import Applied, Rejected
from kmgr.ids import ImageId, ServerId, VersionId
from kmgr.provision.uses import uses
from kmgr.replica.collect import collect, needed, reasons
from kmgr.replica.model import Uses, Version, VersionState
from kmgr.replica.queries import versions as known_versions
from tests.lab.state import State

DAY_MS = 86_400_000
NOW = 1_000 * DAY_MS


@st.composite
def images(draw: st.DrawFn) -> tuple[Version, ...]:
    """Draw some images with versions; numbers have gaps, as after deletions."""
    made = []
    for image in range(draw(st.integers(1, 3))):
        numbers = sorted(draw(st.sets(st.integers(1, 12), max_size=8)))
        at = NOW - 400 * DAY_MS
        for number in numbers:
            at += draw(st.integers(0, 60)) * DAY_MS
            made.append(
                Version(
                    VersionId(f"ver-{image}-{number}"), ImageId(f"img-{image}"), number, 1, 1, 1, "",
                    VersionState.READY, "", at, "",
                )
            )  # fmt: skip
    return tuple(made)


@st.composite
def used(draw: st.DrawFn, versions: tuple[Version, ...]) -> Uses:
    """Draw who uses which of them, and versions that are gone."""
    ids = [one.id for one in versions] + [VersionId("ver-gone")]
    some = st.sets(st.sampled_from(ids), max_size=4)
    return Uses(
        dict.fromkeys(draw(some), ("office",)),
        {one: {ServerId("srv-a"): draw(st.integers(1, 3))} for one in draw(some)},
        dict.fromkeys(draw(some), ("a copy of desktop office-1",)),
    )


rules = st.fixed_dictionaries(
    {
        "keep_versions": st.integers(0, 4),
        "keep_days": st.integers(0, 90),
        "now_ms": st.sampled_from([NOW, 0, NOW * 10]),  # the clock may have jumped
    }
)


@given(st.data(), images(), rules)
@settings(max_examples=400, deadline=None)
def test_what_is_needed_is_never_collected(data: st.DataObject, versions: tuple[Version, ...], rule: Any) -> None:
    uses = data.draw(used(versions))
    going = set(collect(versions, uses, **rule))
    kept = reasons(versions, uses, **rule)
    assert going == {one.id for one in versions} - kept.keys()
    assert all(kept.values())
    for one in versions:
        own = [other for other in versions if other.image == one.image]
        published = [other.number for other in own if other.id in uses.published]
        if needed(one.id, uses):
            assert one.id not in going, "it is used"
        if not published:
            assert one.id not in going, "nobody said what is to become of this image"
        elif one.number > max(published):
            assert one.id not in going, "it is a draft"
        for later in published:
            between = [other for other in own if one.number < other.number < later]
            if one.number < later and len(between) < rule["keep_versions"]:
                assert one.id not in going, "it is in the rollback window by count"
        newer = [other.created_at for other in own if other.number > one.number]
        if newer and rule["now_ms"] - newer[0] < rule["keep_days"] * DAY_MS:
            assert one.id not in going, "it is in the rollback window by days"


@given(st.data(), images(), rules)
@settings(max_examples=200, deadline=None)
def test_collecting_again_collects_nothing_more_and_order_does_not_matter(
    data: st.DataObject, versions: tuple[Version, ...], rule: Any
) -> None:
    uses = data.draw(used(versions))
    going = collect(versions, uses, **rule)
    assert collect(data.draw(st.permutations(versions)), uses, **rule) == going
    left = tuple(one for one in versions if one.id not in going)
    # What stayed by its rank moves up when others between are gone, so it can only be safer than before.
    assert not collect(left, uses, **rule)


def test_an_old_version_beyond_the_window_goes() -> None:
    made = [
        Version(VersionId(f"ver-{n}"), ImageId("img"), n, 1, 1, 1, "", VersionState.READY, "", n * DAY_MS, "")
        for n in range(1, 7)
    ]
    uses = Uses({VersionId("ver-5"): ("office",)}, {VersionId("ver-1"): {ServerId("srv-a"): 2}})
    window: dict[str, int] = {"keep_versions": 2, "keep_days": 30}
    assert collect(made, uses, **window, now_ms=10 * DAY_MS) == ()
    assert collect(made, uses, **window, now_ms=100 * DAY_MS) == (VersionId("ver-2"),)
    told = reasons(made, uses, **window, now_ms=100 * DAY_MS)
    assert told[VersionId("ver-1")] == "it is used by 2 desktops"
    assert told[VersionId("ver-4")] == "it is among the last 2 before a version in use"
    assert told[VersionId("ver-5")] == "it is used by the template office"
    assert told[VersionId("ver-6")] == "it is newer than what templates use"


def test_the_log_looks_again_before_it_deletes() -> None:
    state = State()
    server = state.server("a")
    state.do("image.create", image="img-1", name="Debian", notes="")
    for n in range(1, 7):
        state.version(f"ver-{n}", [server])
    state.template("office", version="ver-6")
    state.do("setting.set", name="keep_days", value=0)
    going = collect(
        known_versions(state.db), uses(state.db), keep_versions=3, keep_days=0, now_ms=state.at
    )  # fmt: skip
    assert going == (VersionId("ver-1"), VersionId("ver-2"))
    state.desktop("tpl-office", server, version="ver-1")  # meanwhile
    said = state.do("version.collect", version="ver-1")
    assert isinstance(said, Rejected)
    assert "used by one desktop" in said.detail
    assert isinstance(state.do("version.collect", version="ver-2"), Applied)
    assert isinstance(state.do("version.collect", version="ver-2"), Rejected)
    said = state.do("version.delete", version="ver-6")
    assert isinstance(said, Rejected)
    assert "the template office" in said.detail
    assert isinstance(state.do("version.delete", version="ver-5"), Applied)
    assert [one.number for one in known_versions(state.db)] == [1, 3, 4, 6]
