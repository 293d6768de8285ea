"""What a guest's first-boot program is told, as the files of its seed disk: name, properties, what the template adds.

cloud-init reads a disk labelled CIDATA (NoCloud), cloudbase-init one labelled
config-2 (a config drive). A guest with neither never looks at the disk.

Pure.
"""

import json
from collections.abc import Mapping

from kmgr.provision import iso
from kmgr.provision.model import Desktop
from kmgr.templates.policy import Policy, Seed

_PLAIN = "#cloud-config\n"


def disk(desktop: Desktop, policy: Policy, *, template: str) -> bytes:
    """Return the seed disk of a desktop, empty if its template wants none."""
    match policy.seed:
        case Seed.NONE:
            return b""
        case Seed.NOCLOUD:
            return iso.image("CIDATA", nocloud(desktop, policy, template=template))
        case Seed.CLOUDBASE:
            return iso.image("config-2", config_drive(desktop, policy, template=template))


def nocloud(desktop: Desktop, policy: Policy, *, template: str) -> Mapping[str, bytes]:
    """Return cloud-init's files. A new generation is a new machine to it."""
    told = {
        "instance-id": f"{desktop.id}-{desktop.generation}",
        "local-hostname": desktop.name,
        "kmgr": {"template": template, "properties": dict(policy.properties)},
    }
    return {"meta-data": _json(told), "user-data": user_data(policy)}


def config_drive(desktop: Desktop, policy: Policy, *, template: str) -> Mapping[str, bytes]:
    """Return cloudbase-init's files."""
    told = {
        "uuid": f"{desktop.id}-{desktop.generation}",
        "name": desktop.name,
        "hostname": desktop.name,
        "meta": {**dict(policy.properties), "kmgr-template": template},
    }
    return {
        "openstack/latest/meta_data.json": _json(told),
        **({"openstack/latest/user_data": user_data(policy)} if policy.seed_data else {}),
    }


def user_data(policy: Policy) -> bytes:
    """Return what the template adds; without a first line that says what it is, it is a cloud-config."""
    text = policy.seed_data.replace("\r\n", "\n")
    return (text if text.startswith(("#", "Content-Type:", "rem cmd")) else _PLAIN + text).encode()


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1).encode() + b"\n"
