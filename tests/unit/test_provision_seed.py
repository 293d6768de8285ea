"""The seed disk of a guest's first boot: what it says, and that any reader of such disks finds it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmgr.provision import iso, seed
from kmgr.templates.policy import Policy, Seed
from tests.unit.test_users_over import a_desktop

RULES = Policy(seed=Seed.NOCLOUD, seed_data="timezone: Europe/Berlin\n", properties=(("site", "hall 3"),))


def test_without_a_seed_there_is_no_disk() -> None:
    assert seed.disk(a_desktop(), Policy(), template="lab") == b""


def test_cloud_init_is_told_name_properties_and_what_the_template_adds() -> None:
    files = seed.nocloud(a_desktop(name="pc-7", generation=3), RULES, template="lab")
    meta = json.loads(files["meta-data"])
    assert (meta["local-hostname"], meta["instance-id"]) == ("pc-7", "dsk-1-3")
    assert meta["kmgr"] == {"template": "lab", "properties": {"site": "hall 3"}}
    assert files["user-data"] == b"#cloud-config\ntimezone: Europe/Berlin\n"


def test_cloudbase_init_is_told_the_same_in_its_own_way() -> None:
    files = seed.config_drive(a_desktop(name="pc-7"), RULES, template="lab")
    meta = json.loads(files["openstack/latest/meta_data.json"])
    assert (meta["hostname"], meta["meta"]) == ("pc-7", {"site": "hall 3", "kmgr-template": "lab"})


@pytest.mark.parametrize(
    "text", ["#cloud-config\na: 1", "#!/bin/sh\ntrue", "#ps1_sysnative\nGet-Date", "rem cmd\r\ndir"]
)
def test_a_script_stays_what_it_is(text: str) -> None:
    assert seed.user_data(Policy(seed=Seed.NOCLOUD, seed_data=text)) == text.replace("\r\n", "\n").encode()


names = st.from_regex(r"[a-z]([a-z0-9_-]{0,10}[a-z0-9])?(\.[a-z]{1,3})?", fullmatch=True)


def _read(disk: bytes, *, joliet: bool) -> dict[str, bytes]:
    """Read all files of an image by its own tables, as a system that mounts it does."""
    descriptor = disk[(17 if joliet else 16) * 2048 :][:2048]
    assert descriptor[:6] == (b"\x02CD001" if joliet else b"\x01CD001")

    def entries(sector: int, size: int, path: str) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        at, block = 0, disk[sector * 2048 :][:size]
        while at < size and block[at]:
            one = block[at : at + block[at]]
            at += block[at]
            name, start, length = one[33 : 33 + one[32]], *(int.from_bytes(one[n : n + 4], "little") for n in (2, 10))
            if name in (b"\0", b"\1"):
                continue
            told = name.decode("utf-16-be") if joliet else name.decode().lower().removesuffix(";1").removesuffix(".")
            if one[25] & 2:
                found |= entries(start, length, f"{path}{told}/")
            else:
                found[path + told] = disk[start * 2048 :][:length]
        return found

    return entries(int.from_bytes(descriptor[158:162], "little"), int.from_bytes(descriptor[166:170], "little"), "")


@given(
    files=st.dictionaries(
        st.tuples(names, names).map("/".join) | names, st.binary(max_size=5000), min_size=1, max_size=5
    ).filter(lambda found: not {one.partition("/")[0] for one in found if "/" in one} & set(found))
)
@settings(max_examples=50)
def test_every_file_is_found_by_both_kinds_of_names(files: dict[str, bytes]) -> None:
    disk = iso.image("CIDATA", files)
    assert _read(disk, joliet=True) == files
    assert _read(disk, joliet=False) == files
    assert len(disk) % 2048 == 0


def test_the_same_files_are_the_same_disk() -> None:
    assert seed.disk(a_desktop(), RULES, template="lab") == seed.disk(a_desktop(), RULES, template="lab")


def test_a_label_or_a_folder_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="label"):
        iso.image("x" * 17, {"a": b""})
    with pytest.raises(ValueError, match="too many files"):
        iso.image("x", {f"a-long-file-name-{n}": b"" for n in range(60)})


@pytest.mark.skipif(shutil.which("blkid", path="/sbin:/usr/sbin:/usr/bin") is None, reason="no blkid here")
def test_the_system_finds_the_disk_by_its_label(tmp_path: Path) -> None:
    disk = tmp_path / "seed.iso"
    disk.write_bytes(seed.disk(a_desktop(), RULES, template="lab"))
    blkid = str(shutil.which("blkid", path="/sbin:/usr/sbin:/usr/bin"))
    told = subprocess.run([blkid, "-p", "-o", "export", str(disk)], capture_output=True, text=True, check=True).stdout
    assert {"TYPE=iso9660", "LABEL=CIDATA"} <= set(told.splitlines())
