"""Which processor a desktop may move to while it runs, and what libvirt tells of one."""

from dataclasses import replace

import pytest

from kmgr.grid.model import Processor
from kmgr.provision.processors import read, why_not

# As libvirt 9 tells it, but for most of the features.
TOLD = """<capabilities><host><uuid>u</uuid><cpu><arch>x86_64</arch><model>EPYC-Milan</model><vendor>AMD</vendor>
<microcode version='16777317'/><signature family='25' model='17' stepping='1'/><topology sockets='1' cores='2'/>
<feature name='avx2'/><feature name='sse4.2'/><pages unit='KiB' size='4'/></cpu></host><guest/></capabilities>"""
CHIP = Processor("AMD", "family 25 model 17 (EPYC-Milan)", frozenset({"avx2", "sse4.2"}))


def test_what_libvirt_tells_is_read() -> None:
    assert read(TOLD) == CHIP


@pytest.mark.parametrize(
    "told",
    ["", "<capabilities/>", "<capabilities><host><cpu/></host></capabilities>", TOLD.replace("feature", "future"),
     TOLD.replace("signature", "sign")],
)  # fmt: skip
def test_what_it_does_not_tell_whole_is_not_known(told: str) -> None:
    assert read(told) is None


@pytest.mark.parametrize(
    ("there", "why"),
    [
        (CHIP, ""),
        (replace(CHIP, features=CHIP.features | {"avx512f"}), ""),
        (replace(CHIP, features=frozenset({"avx2"})), "has a processor that lacks sse4.2"),
        (replace(CHIP, vendor="Intel"), "has another processor: Intel family 25"),
        (replace(CHIP, kind="family 25 model 1 (EPYC-Milan)"), "has another processor: AMD family 25 model 1 "),
        (None, "may have another processor: that is not known"),
    ],
)
def test_a_guest_goes_on_only_where_all_is_that_it_found(there: Processor | None, why: str) -> None:
    assert why_not("kvm", CHIP, there).startswith(why)
    assert bool(why_not("kvm", CHIP, there)) is bool(why)
    assert why_not("tcg", CHIP, there) == "", "in emulation all are the same"


def test_what_is_not_known_here_is_not_tried() -> None:
    assert "not known" in why_not("kvm", None, CHIP)
    assert why_not("tcg", None, None) == ""


def test_much_that_is_missing_is_told_in_few_words() -> None:
    much = replace(CHIP, features=frozenset(f"f{number}" for number in range(60)))
    assert (
        why_not("kvm", much, replace(CHIP, features=frozenset()))
        == "has a processor that lacks f0, f1, f10 and 57 more"
    )
