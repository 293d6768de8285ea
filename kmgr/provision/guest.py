"""What a running guest is asked and told through its agent: who is logged on, a message to them.

All of it is optional: a guest without an agent, or one that forbids a call, is
`Unavailable` or `Refused`, and whoever asks goes on without it.
"""

from typing import Any

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId
from kmgr.provision.hypervisor import Hypervisor

ASKED_S = 3.0
_WINDOWS = "mswindows"
_SHOWN_S = "60"
# Everybody's terminal, and a note on every graphical screen whose bus can be reached.
_LINUX = r"""
printf '%s\n' "$1" | wall 2>/dev/null
for bus in /run/user/*/bus; do
[ -S "$bus" ] || continue
uid=${bus#/run/user/} uid=${uid%/bus}
DBUS_SESSION_BUS_ADDRESS=unix:path=$bus setpriv --reuid="$uid" --clear-groups notify-send -u critical "$1" 2>/dev/null
done
"""
_MOST_USERS = 1000


async def tell(hypervisor: Hypervisor, desktop: DesktopId, text: str) -> None:
    """Show a message to whoever is logged on in a guest; raises what the agent says if it cannot."""
    found = await hypervisor.agent(desktop, "guest-get-osinfo", {}, ASKED_S)
    if found.get("id") == _WINDOWS:
        program = {"path": "msg.exe", "arg": ["*", f"/TIME:{_SHOWN_S}", text]}
    else:
        program = {"path": "/bin/sh", "arg": ["-c", _LINUX, "kmgr", text]}
    await hypervisor.agent(desktop, "guest-exec", {**program, "capture-output": False}, ASKED_S)


async def logged_on(hypervisor: Hypervisor, desktop: DesktopId) -> frozenset[str]:
    """Return who is logged on in a guest; raises what the agent says if it cannot tell."""
    found: Any = (await hypervisor.agent(desktop, "guest-get-users", {}, ASKED_S)).get("value", [])
    if not isinstance(found, list):
        raise Unavailable("the guest agent's answer is no list of users")
    return frozenset(str(one["user"]) for one in found[:_MOST_USERS] if isinstance(one, dict) and "user" in one)
