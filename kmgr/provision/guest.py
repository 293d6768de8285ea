"""What a running guest is asked and told through its agent: a program, who is logged on, a message, the time.

All of it is optional: a guest without an agent, or one that forbids a call, is
`Unavailable` or `Refused`, and whoever asks goes on without it. Nothing that a
guest says is more than a guest's word, whatever it prints.
"""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from kmgr.clock import Clock
from kmgr.errors import KmgrError, Refused, Unavailable
from kmgr.ids import DesktopId
from kmgr.provision.causes import Trouble, recognise
from kmgr.provision.hypervisor import DomainState, Hypervisor

ASKED_S = 3.0
# For a guest that answered a moment ago to answer again, and for a small program in it to end.
PATIENCE_S = 60.0
POLL_S = 0.1
_AGENT_S = 10.0
_AGAIN_S = 0.5
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
# What an agent says of a failure is shown to people; a guest may say much.
_MOST_WORDS = 300


# What somebody reads who looks for why it does not answer (`causes`).
FLOODS = "the guest agent sends more than it was asked for, or what is no answer"


class GuestFailed(Refused):
    """The guest's fault: another way of asking it would not help."""


def returned(answer: str) -> Mapping[str, Any]:
    """Return what an agent's answer returns, {} if nothing; `GuestFailed` if nobody can read it, whatever it is."""
    try:
        whole = json.loads(answer)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists in lists
        raise GuestFailed(f"{FLOODS}: {str(error)[:_MOST_WORDS]}") from error
    told = whole.get("return") if isinstance(whole, dict) else None
    return told if isinstance(told, dict) else {} if told in (None, "") else {"value": told}


async def called(
    hypervisor: Hypervisor,
    clock: Clock,
    desktop: DesktopId,
    command: str,
    arguments: Callable[[], Mapping[str, Any]],
    *,
    limit_s: float = PATIENCE_S,
) -> Mapping[str, Any]:
    """Call the agent of a guest that answered a moment ago: if it does not for long, that is its failure.

    A busy server's guest may take longer than the agent is given for one call; what is asked here may be asked twice.
    """
    deadline = clock.monotonic() + limit_s
    while True:
        try:
            return await hypervisor.agent(desktop, command, arguments(), min(_AGENT_S, limit_s))
        except KmgrError as error:
            if not isinstance(error, Unavailable) or clock.monotonic() > deadline:
                raise GuestFailed(f"its guest agent does not do {command}: {error.message[:_MOST_WORDS]}") from error
        await clock.sleep(POLL_S)


async def printed(
    hypervisor: Hypervisor,
    clock: Clock,
    desktop: DesktopId,
    program: Mapping[str, Any],
    *,
    limit_s: float = PATIENCE_S,
) -> str:
    """Run a program in a guest and return what it printed; `GuestFailed` if it does not end, or prints nonsense."""
    deadline = clock.monotonic() + limit_s
    started = await called(hypervisor, clock, desktop, "guest-exec", lambda: program, limit_s=limit_s)
    asked = {"pid": started.get("pid")}
    while True:
        told = await called(hypervisor, clock, desktop, "guest-exec-status", lambda: asked, limit_s=limit_s)
        if told.get("exited"):
            return _decoded(told.get("out-data", ""))
        if clock.monotonic() > deadline:
            raise GuestFailed(f"a program in its guest did not end within {limit_s:g} s")
        await clock.sleep(POLL_S)


async def set_clock(hypervisor: Hypervisor, clock: Clock, desktop: DesktopId) -> None:
    """Tell a guest that stood still what time it is; `Unavailable` as soon as it stands still again."""
    deadline = clock.monotonic() + PATIENCE_S
    while True:
        try:
            await hypervisor.agent(desktop, "guest-set-time", {"time": clock.now_ms() * 1_000_000}, _AGENT_S)
        except Unavailable as error:
            found = {one.desktop: one.state for one in await hypervisor.domains()}
            if found.get(desktop) is not DomainState.RUNNING:
                raise Unavailable("it was halted again as soon as it went on: is the disk full?") from error
            if clock.monotonic() > deadline:
                raise GuestFailed(f"its guest agent does not answer: {error.message[:_MOST_WORDS]}") from error
        else:
            return
        await clock.sleep(_AGAIN_S)


async def silence(hypervisor: Hypervisor, desktop: DesktopId) -> str:
    """Return what an agent that never answered does instead, empty if nothing is known of it."""
    try:
        await hypervisor.agent(desktop, "guest-ping", {}, ASKED_S)
    except KmgrError as error:
        if recognise("guest", error.message) is Trouble.AGENT_FLOODS:
            return error.message[:_MOST_WORDS]
    return ""


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


def _decoded(data: Any) -> str:
    try:
        return base64.b64decode(data).decode(errors="replace")
    except (ValueError, TypeError) as error:
        raise GuestFailed("its guest agent printed something that it should not: it is not base64") from error
