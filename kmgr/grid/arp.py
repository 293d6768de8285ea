"""The network underneath the grid address: ask who has it, tell who has it now, take it, drop it.

* Taking is one netlink message that adds the address to an interface *for a few
  seconds*; it is renewed all the time. A daemon that is killed or stopped loses it
  by the kernel's own clock, without anybody left to clean up.
* Asking (ARP probe) and telling (gratuitous ARP) are frames on a packet socket.

Needs CAP_NET_ADMIN and CAP_NET_RAW; without them the calls raise `PermissionError`.
All calls block for milliseconds, `probe` for its `wait_s`.
"""

import ipaddress
import os
import select
import socket
import struct
import time

import psutil

from kmgr.grid.address import Card

_ETH_ARP = 0x0806
_BROADCAST = b"\xff" * 6
_REQUEST, _REPLY = 1, 2
_ARP = struct.Struct("!HHBBH6s4s6s4s")

_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_ACK, _CREATE, _REPLACE, _ASK = 0x4, 0x400, 0x100, 0x1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_CACHEINFO = 1, 2, 4, 6
_NLMSG_ERROR = 2
_HEAD, _ADDRESS, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBBi"), struct.Struct("=HH")
_NO_SUCH_ADDRESS = 99


def cards() -> tuple[Card, ...]:
    """Return all IPv4 addresses of this machine's interfaces that are up, but loopback's."""
    found, states = [], psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        if name == "lo" or name not in states or not states[name].isup:
            continue
        mac = next((a.address for a in addresses if a.family == psutil.AF_LINK), "")
        for address in addresses:
            if address.family == socket.AF_INET and address.netmask:
                interface = ipaddress.IPv4Interface(f"{address.address}/{address.netmask}")
                found.append(Card(name, mac, interface))
    return tuple(found)


def take(address: ipaddress.IPv4Interface, interface: str, *, for_s: int) -> None:
    """Have the kernel answer for an address on an interface for so many seconds; again to go on having it."""
    flags = _ASK | _ACK | _CREATE | _REPLACE
    cache = struct.pack("=IIII", for_s, for_s, 0, 0)
    broadcast = address.network.broadcast_address.packed if address.network.prefixlen < 31 else b""
    more = _attribute(_IFA_CACHEINFO, cache) + (_attribute(_IFA_BROADCAST, broadcast) if broadcast else b"")
    _netlink(_RTM_NEWADDR, flags, address, interface, more)


def drop(address: ipaddress.IPv4Interface, interface: str) -> None:
    """Have the kernel answer for an address no longer; nothing happens if it did not."""
    try:
        _netlink(_RTM_DELADDR, _ASK | _ACK, address, interface, b"")
    except OSError as error:
        if error.errno != _NO_SUCH_ADDRESS:
            raise


def probe(ip: ipaddress.IPv4Address, card: Card, *, wait_s: float) -> str | None:
    """Return the hardware address of who answers for an address, None if nobody does within `wait_s`."""
    own = _mac(card.mac)
    # A probe has no sender address: nobody's table is changed by the question (RFC 5227).
    question = _frame(own, _REQUEST, b"\0" * 4, b"\0" * 6, ip.packed)
    with _packets(card.interface) as packets:
        deadline, again_at = time.monotonic() + wait_s, 0.0
        while (now := time.monotonic()) < deadline:
            if now >= again_at:
                packets.send(question)
                again_at = now + wait_s / 3
            readable, _, _ = select.select([packets], [], [], min(deadline, again_at) - now)
            if not readable:
                continue
            answer = read(packets.recv(2048))
            if answer is not None and answer[0] == ip and answer[1] != own:
                return answer[1].hex(":")
    return None


def announce(ip: ipaddress.IPv4Address, card: Card) -> None:
    """Tell everybody on the network that this machine has the address now (gratuitous ARP, both customary kinds)."""
    own = _mac(card.mac)
    with _packets(card.interface) as packets:
        for kind, target in ((_REQUEST, b"\0" * 6), (_REPLY, _BROADCAST)):
            packets.send(_frame(own, kind, ip.packed, target, ip.packed))


def read(frame: bytes) -> tuple[ipaddress.IPv4Address, bytes] | None:
    """Return who an ARP frame is from, (address, hardware address); None for any other frame."""
    if len(frame) < 14 + _ARP.size or int.from_bytes(frame[12:14]) != _ETH_ARP:
        return None
    kind, protocol, _, _, _, mac, ip, _, _ = _ARP.unpack_from(frame, 14)
    return (ipaddress.IPv4Address(ip), mac) if (kind, protocol) == (1, 0x0800) else None


def _frame(own: bytes, kind: int, sender: bytes, target_mac: bytes, target: bytes) -> bytes:
    arp = _ARP.pack(1, 0x0800, 6, 4, kind, own, sender, target_mac, target)
    return _BROADCAST + own + _ETH_ARP.to_bytes(2) + arp


def _packets(interface: str) -> socket.socket:
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_ARP))
    try:
        packets.bind((interface, _ETH_ARP))
    except OSError:
        packets.close()
        raise
    return packets


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", "").replace("-", ""))


def _attribute(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data


def _netlink(kind: int, flags: int, address: ipaddress.IPv4Interface, interface: str, more: bytes) -> None:
    packed, index = address.ip.packed, socket.if_nametoindex(interface)
    body = _ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, 0, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed) + more
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.settimeout(2)
        kernel.bind((0, 0))
        kernel.send(_HEAD.pack(_HEAD.size + len(body), kind, flags, 1, 0) + body)
        answer = kernel.recv(4096)
    _, said, _, _, _ = _HEAD.unpack_from(answer)
    code = struct.unpack_from("=i", answer, _HEAD.size)[0] if said == _NLMSG_ERROR else 0
    if code:
        raise OSError(-code, f"{address} on {interface}: {os.strerror(-code)}")
