"""What of a template a desktop gets when its machine starts, and what of that it does not have yet. Pure.

A guest that runs keeps the processors, the memory and the devices that it was
started with. What an administrator changes waits until it is powered off and on
again, and is shown as pending until then. The kind of its machine never changes:
what is installed on its disk starts on no other.
"""

import json
from dataclasses import asdict

from kmgr.provision.model import Desktop
from kmgr.templates.machine import USUAL_MACHINE, Machine, machine_of
from kmgr.templates.model import Template
from kmgr.templates.policy import NO_DEVICES, Policy

_WORDS = {"clipboard": ("a shared clipboard", "no shared clipboard"), "sound": ("a sound card", "no sound card")}
_MACHINE = "machine"


def outfit(policy: Policy, kept: str = "") -> str:
    """Return what of a policy a start brings, as text that is the same for equal ones.

    A desktop whose former outfit was `kept` keeps its machine.
    """
    machine = machine_in(kept, policy)
    more = {} if machine == USUAL_MACHINE else {_MACHINE: asdict(machine)}
    had = {"network": policy.network, **asdict(policy.devices), **more}
    return json.dumps(had, sort_keys=True, separators=(",", ":"))


def machine_in(had: str, policy: Policy) -> Machine:
    """Return the machine of a desktop with this outfit: the one that it was made with."""
    if not had:
        return policy.machine
    return machine_of(json.loads(had).get(_MACHINE, {}))[0]


def pending(desktop: Desktop, template: Template) -> tuple[str, ...]:
    """Return what a desktop gets with its next start, in words; none if it has all that."""
    found = []
    if desktop.vcpus != template.vcpus:
        found.append(f"{template.vcpus} virtual CPU{'' if template.vcpus == 1 else 's'} instead of {desktop.vcpus}")
    if desktop.memory_mib != template.memory_mib:
        found.append(f"{template.memory_mib} MiB of memory instead of {desktop.memory_mib}")
    if desktop.outfit:
        has, wanted = json.loads(desktop.outfit), json.loads(outfit(template.policy))
        if has.get("network") != wanted["network"]:
            found.append(f"the network {wanted['network']}" if wanted["network"] else "the server's usual network")
        for name, (there, missing) in _WORDS.items():
            if bool(has.get(name)) != wanted[name]:
                found.append(there if wanted[name] else missing)
        if has.get("video_mib", NO_DEVICES.video_mib) != wanted["video_mib"]:
            found.append(f"{wanted['video_mib']} MiB of video memory")
    return tuple(found)
