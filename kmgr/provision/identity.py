"""What a guest is told so that it becomes a desktop of its own: a restored one all of it, one that booted its name.

A restored guest's memory is another one's: so are its host name, its machine id,
its network address and lease, its clock and the random numbers it would draw next. One
program, run by the guest agent, takes on the new ones and prints what it then
has; the desktop counts as ready only when that is what was asked for. A new
generation id (`genid` of the domain) makes Linux 5.18 and Windows draw other
random numbers; the seed is for those that do not know it.

Pure: programs and answers, nothing is called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A name is kept in files too, so that it stays when the guest boots again.
_NAMED = r"""
echo "$name" >/proc/sys/kernel/hostname
if [ -s /etc/hostname ]; then read -r old </etc/hostname; echo "$name" >/etc/hostname
[ -n "$old" ] && [ -f /etc/hosts ] && sed -i "s/\b$old\b/$name/g" /etc/hosts; fi
"""
# For any Linux: sh, ip and date or their like. What is not there is passed over; what counts is printed and checked.
# In emulation each program that is started costs tens of milliseconds, so the shell does itself what it can.
_LINUX = (
    r"""
name=$1 mac=$2 seed=$3 now=$4
printf '%s' "$seed" >/dev/urandom
if [ -x /usr/bin/perl ]; then perl -e 'open(my $r, ">", "/dev/random"); ioctl($r, 0x5207, 0)'
elif [ -x /usr/bin/python3 ]; then python3 -c 'import fcntl; fcntl.ioctl(open("/dev/random", "wb"), 0x5207)'
fi 2>/dev/null
date -u -s "@$now" >/dev/null 2>&1 && echo clock=set"""
    + _NAMED
    + r"""
if [ -f /etc/machine-id ] && ! { command -v systemd-machine-id-setup && rm -f /etc/machine-id &&
systemd-machine-id-setup; } >/dev/null 2>&1; then
read -r id </proc/sys/kernel/random/uuid; IFS=-; set -- $id; IFS=; echo "$*" >/etc/machine-id; unset IFS
fi
card=
for one in /sys/class/net/*; do [ -e "$one/device" ] && card=${one##*/} && break; done
if [ -n "$card" ]; then
ip link set "$card" address "$mac" 2>/dev/null ||
{ ip link set "$card" down; ip link set "$card" address "$mac"; ip link set "$card" up; }
if command -v nmcli && nmcli device reapply "$card"; then :
elif command -v networkctl && networkctl reconfigure "$card"; then :
elif command -v dhclient && pidof dhclient; then pkill dhclient; ip addr flush dev "$card"; dhclient -nw "$card"
elif command -v udhcpc && pids=$(pidof udhcpc); then
# Begun anew as it was: it calls itself by the address that it found then, and a signal in its first moment ends it.
again=$(tr '\0' ' ' <"/proc/${pids%% *}/cmdline")
kill -KILL $pids; ip addr flush dev "$card"; $again </dev/null &
fi >/dev/null 2>&1
read -r mac <"/sys/class/net/$card/address" && echo "mac=$mac"
fi
read -r name </proc/sys/kernel/hostname && echo "name=$name"
read -r sample </proc/sys/kernel/random/uuid && echo "sample=$sample"
"""
)
_NAMING = "name=$1" + _NAMED + 'read -r name </proc/sys/kernel/hostname && echo "name=$name"\n'

# A guest may print anything; nothing that is asked for is longer.
_LONGEST = 100


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a desktop another one than that whose memory it was restored from; `now_s`: s since 1970."""

    name: str
    mac: str
    seed: str
    now_s: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a guest says it is now; `sample` are random bits that it drew."""

    name: str = ""
    mac: str = ""
    sample: str = ""
    clock: str = ""


def program(identity: Identity) -> Mapping[str, Any]:
    """Return the arguments of `guest-exec` that have a Linux guest take on an identity and print an answer."""
    arguments = ["-c", _LINUX, "kmgr", identity.name, identity.mac, identity.seed, str(identity.now_s)]
    return {"path": "/bin/sh", "arg": arguments, "capture-output": True}


def nothing() -> Mapping[str, Any]:
    """Return the arguments of `guest-exec` that do nothing: who cannot run that takes on no identity either."""
    return {"path": "/bin/sh", "arg": ["-c", ":", "kmgr", ""], "capture-output": True}


def naming(name: str) -> Mapping[str, Any]:
    """Return the arguments of `guest-exec` that give a Linux guest its name and print the one that it has then."""
    return {"path": "/bin/sh", "arg": ["-c", _NAMING, "kmgr", name], "capture-output": True}


def answer(printed: str) -> Answer:
    """Return what the program printed; what it left out is empty."""
    told = dict(line.partition("=")[::2] for line in printed.splitlines())
    found = {name: told.get(name, "")[:_LONGEST].strip() for name in ("name", "mac", "sample", "clock")}
    return Answer(**{**found, "mac": found["mac"].lower()})


def problem(identity: Identity, told: Answer, *, drawn: Sequence[str] = ()) -> str:
    """Say why a guest is not what it was to become, empty if it is. `drawn` are the samples of others like it."""
    if why := misnamed(identity.name, told):
        return why
    if told.mac != identity.mac:
        return f"its network address is {told.mac or 'unknown'} and not {identity.mac}"
    if told.clock != "set":
        return "its clock could not be set"
    if not told.sample:
        return "it has no random numbers to show"
    if told.sample in drawn:
        return "it draws the same random numbers as another one restored from the same memory"
    return ""


def misnamed(name: str, told: Answer) -> str:
    """Say what else a guest calls itself; empty if it has its name."""
    return "" if told.name == name else f"it calls itself {told.name or 'nothing'} and not {name}"
