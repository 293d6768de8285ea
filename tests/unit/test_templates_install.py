"""A template that is installed from an ISO: it begins empty and off, and ends as one like any other."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.grid.envelope import Outcome
from kmgr.ids import DesktopId, TemplateId, VersionId
from kmgr.provision.uses import uses
from kmgr.replica.images import version_path
from kmgr.templates.install_queries import installs, kinds
from kmgr.templates.queries import template
from kmgr.templates.version_queries import template_versions
from tests.lab.outcomes import rejected
from tests.lab.provision import A, Desk, done

TPL, EDIT = TemplateId("tpl-new"), DesktopId("dsk-edit")
SIZES = {"size_bytes": 1 << 20, "used_bytes": 0, "block_bytes": 1 << 16}


class Bench(Desk):
    """A server that has an ISO and an empty disk."""

    async def open(self) -> None:
        await self.found(standby=0)
        for number, kind in enumerate(("iso", "blank"), 7):
            done(await self.do("image.create", image=f"img-{kind}", name=kind, notes=""))
            done(await self.do("image.kind", image=f"img-{kind}", kind=kind))
            body = {"version": f"ver-{kind}", "image": f"img-{kind}", "notes": "", "server": A, **SIZES}
            done(await self.do("version.add", **body, manifest_hash=f"{number}" * 64))
            self.raw(f"ver-{kind}").write_bytes(bytes(1 << 20))

    async def install(self, **changed: Any) -> Outcome:
        shape = {"vcpus": 1, "memory_mib": 512, "standby": 1, "maximum": 3, "refresh": "on_logout", "notes": ""}
        body = {"template": TPL, "name": "new", "image": "img-blank", "version": "ver-blank", "iso": "ver-iso"}
        return await self.do("template.install", **{**shape, **body, **changed})

    async def bench(self) -> Outcome:
        body = {"template": TPL, "version": "ver-blank", "server": A, "purpose": "edit", "user": "anna"}
        return await self.do("desktop.bench", desktop=EDIT, **body)

    async def publish(self, **more: Any) -> Outcome:
        """Publish what was installed: version 1 of an image of its own."""
        done(await self.do("image.create", image="img-new", name="new", notes=""))
        body = {"version": "ver-new", "image": "img-new", "notes": "", "server": A, **SIZES}
        done(await self.do("version.add", **body, manifest_hash="9" * 64))
        return await self.do("template.publish", template=TPL, version="ver-new", image="img-new", **more)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.open()
    yield bench
    bench.grid.close()


async def test_until_something_is_published_it_is_off_and_needs_its_iso(bench: Bench) -> None:
    done(await bench.install())
    with bench.grid.view() as db:
        new, used = template(db, TPL), uses(db)
        assert installs(db) == {TPL: "ver-iso"}
    assert new is not None
    assert not new.enabled
    assert used.others[VersionId("ver-iso")] == ("the installation of new",)
    said = rejected(await bench.do("version.delete", version="ver-iso"), "conflict")
    assert "is used by the installation of new" in said
    assert "still being installed" in rejected(
        await bench.do("template.update", template=TPL, enabled=True), "refused"
    )
    done(await bench.do("template.update", template=TPL, standby=2))


@pytest.mark.parametrize("how", [{}, {"canary": 1}])
async def test_the_first_version_that_is_published_ends_it_and_nothing_leads_back(
    bench: Bench, how: dict[str, int]
) -> None:
    done(await bench.install())
    done(await bench.publish(**how))
    with bench.grid.view() as db:
        new, noted = template(db, TPL), template_versions(db, TPL)
        assert installs(db) == {}
    assert new is not None
    assert (new.enabled, new.version, new.image) == (True, "ver-new", "img-new")
    assert [(one.version, one.number) for one in noted] == [("ver-new", 1)]
    assert "no version to go back to" in rejected(await bench.do("template.roll_back", template=TPL), "refused")
    done(await bench.do("version.delete", version="ver-iso"))


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"iso": "ver-1"}, "refused", "not an installer"),
        ({"iso": "ver-gone"}, "refused", "or was deleted"),
        ({"image": "img-1", "version": "ver-1"}, "refused", "begins with an empty disk"),
        ({"name": "debian"}, "conflict", "already a golden image 'debian'"),
        ({"name": "No Host"}, "refused", "host name"),
        ({"vcpus": 0}, "refused", "processors"),
        ({"standby": 4}, "refused", "more than the maximum"),
    ],
)
async def test_what_cannot_be_installed_is_refused_whole(
    bench: Bench, changed: dict[str, Any], code: str, words: str
) -> None:
    assert words in rejected(await bench.install(**changed), code)
    with bench.grid.view() as db:
        assert template(db, TPL) is None
        assert installs(db) == {}


async def test_an_iso_is_no_disk_of_desktops(bench: Bench) -> None:
    shape = {"vcpus": 1, "memory_mib": 512, "standby": 1, "maximum": 3, "refresh": "on_logout", "notes": ""}
    body = {"template": "tpl-wrong", "name": "wrong", "image": "img-iso", "version": "ver-iso"}
    assert "install from it" in rejected(await bench.do("template.create", **shape, **body), "refused")
    told = rejected(await bench.do("template.publish", template="tpl", version="ver-iso", image="img-iso"), "refused")
    assert "install from it" in told


async def test_the_kind_of_an_image_is_said_before_its_first_version(bench: Bench) -> None:
    assert "choose another name" in rejected(await bench.do("image.kind", image="img-iso", kind="disk"), "conflict")
    assert "no kind of image" in rejected(await bench.do("image.kind", image="img-iso", kind="tape"), "refused")
    rejected(await bench.do("image.kind", image="img-none", kind="iso"), "not_found")
    done(await bench.do("image.kind", image="img-iso", kind="iso"))
    done(await bench.do("image.delete", image="img-iso"))
    with bench.grid.view() as db:
        assert kinds(db) == {"img-blank": "blank"}


async def test_its_desktop_boots_from_the_iso_and_no_agent_is_waited_for(bench: Bench) -> None:
    done(await bench.install())
    bench.hypervisor.boot_s = 1e9
    done(await bench.bench())
    await bench.live(20)
    assert bench.states()[EDIT] == "in_use"
    iso = version_path(bench.folder, VersionId("ver-iso"))
    assert bench.hypervisor._domains[EDIT].spec.installer == str(iso)
    assert bench.one(EDIT).user == "anna"


async def test_an_iso_that_was_removed_by_hand_is_named_as_what_is_missing(bench: Bench) -> None:
    done(await bench.install())
    bench.raw("ver-iso").unlink()
    done(await bench.bench())
    await bench.live(20)
    broken = bench.one(EDIT)
    assert (broken.state, broken.step) == ("broken", "installer")
    assert "the ISO that it is installed from is not on this server" in broken.cause


async def test_a_template_that_is_deleted_while_it_is_installed_leaves_nothing(bench: Bench) -> None:
    done(await bench.install())
    done(await bench.do("template.delete", template=TPL))
    with bench.grid.view() as db:
        assert installs(db) == {}
    done(await bench.do("version.delete", version="ver-iso"))


async def test_a_second_drive_with_drivers_is_kept_as_long_as_the_installation_goes_on(bench: Bench) -> None:
    done(await bench.do("image.create", image="img-virtio", name="virtio-win", notes=""))
    done(await bench.do("image.kind", image="img-virtio", kind="drivers"))
    body = {"version": "ver-virtio", "image": "img-virtio", "notes": "", "server": A, **SIZES}
    done(await bench.do("version.add", **body, manifest_hash="d" * 64))
    assert "not an installer" in rejected(await bench.install(iso="ver-virtio"), "refused"), "nothing boots from it"
    assert "not an ISO with drivers" in rejected(await bench.install(drivers="ver-blank"), "refused")
    done(await bench.install(drivers="ver-virtio"))
    done(await bench.bench())
    for iso in ("ver-iso", "ver-virtio"):
        bench.raw(iso).write_bytes(bytes(1 << 20))
    bench.raw("ver-virtio").unlink()
    await bench.live(6)
    broken = bench.one(EDIT)
    assert broken.state == "broken" and "the ISO with its drivers is not on this server" in broken.cause
    bench.raw("ver-virtio").write_bytes(bytes(1 << 20))
    done(await bench.do("desktop.retry", desktop=EDIT))
    await bench.live(6)
    spec = bench.hypervisor.spec(EDIT)
    assert (Path(spec.installer).name, Path(spec.drivers).name) == ("ver-iso.raw", "ver-virtio.raw")
    said = rejected(await bench.do("version.delete", version="ver-virtio"), "conflict")
    assert "is used by the installation of new" in said
    done(await bench.publish())
    done(await bench.do("version.delete", version="ver-virtio"))
