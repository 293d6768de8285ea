"""What breaks desktops: recognised by the words that it comes with, never without a cure."""

import pytest

from kmgr.provision.causes import CURES, Fault, Trouble, counts, known, recognise

# As libvirt 11, QEMU 10, Linux 6.12 and kmgr itself word it.
QEMU = "process exited while connecting to monitor: qemu-system-x86_64: "
WORDED = [
    ("linked clone", "No space left on device (/var/lib/kmgr/desktops/d-1.new)", Trouble.DISK_FULL),
    ("linked clone", "Input/output error", Trouble.DISK_SICK),
    ("linked clone", "its golden image is not on this server any more", Trouble.NO_IMAGE),
    ("golden image", "its golden image is not on this server: the copy did not come within 60 s", Trouble.NO_IMAGE),
    ("domain", "a domain named kmgr-d-1 exists that is not kmgr's: rename or remove it", Trouble.FOREIGN_DOMAIN),
    ("start", "Cannot get interface MTU on 'br9': No such device", Trouble.NO_NETWORK),
    ("start", "Network not found: no network with matching name 'office'", Trouble.NO_NETWORK),
    ("start", QEMU + "cannot set up guest memory 'pc.ram': Cannot allocate memory", Trouble.NO_MEMORY),
    ("start", "the CPU is incompatible with host CPU: Host CPU does not provide required features", Trouble.NO_CPU),
    ("start", "Could not access KVM kernel module: No such file or directory", Trouble.NO_KVM),
    ("start", "Cannot access storage file '/k/desktops/d-1.qcow2': No such file or directory", Trouble.NO_DISK),
    ("run", "its disk is gone from this server: somebody removed it by hand", Trouble.NO_DISK),
    ("run", "its domain is gone from the hypervisor: somebody removed it by hand", Trouble.NO_DOMAIN),
    ("start", "there is no domain of desktop d-1", Trouble.NO_DOMAIN),
    ("guest", "the guest did not answer within 300 s of its start: does it boot?", Trouble.GUEST_SILENT),
    ("guest", "its guest agent answered when it started, and has been silent for 30 s since", Trouble.AGENT_SILENT),
    ("guest", "the guest went off before it answered: does the golden image boot?", Trouble.GUEST_OFF),
    ("run", "it went off by itself 3 times within 5 minutes", Trouble.GOES_OFF),
    ("run", "it rebooted 6 times within 5 minutes", Trouble.REBOOTS),
    ("guest", "its server did not get on with it within 9 s: libvirt is not answering: x", Trouble.NO_HYPERVISOR),
    ("begin", "its server did not get on with it within 600 s: nothing more is known", Trouble.NOT_BEGUN),
    ("safe copy", "its blocks are damaged", Trouble.NO_COPY),
    ("start", "something that nobody has seen yet", Trouble.REFUSED),
]


@pytest.mark.parametrize(("step", "cause", "trouble"), WORDED)
def test_a_cause_is_recognised_by_its_words(step: str, cause: str, trouble: Trouble) -> None:
    assert recognise(step, cause) is trouble


def test_every_trouble_says_what_it_is_and_what_to_do_in_sentences() -> None:
    assert set(CURES) == set(Trouble)
    for cure in CURES.values():
        for text in (cure.what, cure.advice):
            assert text[0].isupper() or text.startswith(("libvirt", "kmgr", "dmesg"))
            assert text.endswith(("?", "."))


def test_a_servers_own_fault_is_not_held_against_the_golden_image() -> None:
    assert {trouble for trouble in Trouble if counts(trouble)} == {
        Trouble.GUEST_SILENT,
        Trouble.GUEST_OFF,
        Trouble.AGENT_SILENT,
        Trouble.REBOOTS,
        Trouble.AGENT_FLOODS,
        Trouble.TOO_LARGE,
        Trouble.REFUSED,
    }
    assert CURES[Trouble.DISK_FULL].fault is Fault.SERVER


def test_a_trouble_of_a_newer_release_is_none_here() -> None:
    assert known("disk_full") is Trouble.DISK_FULL
    assert known("") is None
    assert known("struck_by_lightning") is None
