"""Decide which server holds the grid address: a floating IP under which people find the grid, whoever lives.

The leader holds it while it has a majority, a server on an island holds it there;
everybody else lets go. Two never hold it for long: who loses the majority drops it
before another can have been elected, and whoever takes it looks first whether
anybody answers for it.

Pure.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmgr.errors import Refused
from kmgr.ids import ServerId


@dataclass(frozen=True, slots=True)
class Card:
    """One IPv4 address of one network interface of this machine."""

    interface: str
    mac: str
    address: ipaddress.IPv4Interface


def check_address(text: object) -> str:
    """Return a floating address as it is stored (`192.0.2.5/24`, or empty for none); raise `Refused` otherwise."""
    if text == "":
        return ""
    try:
        if not isinstance(text, str) or "/" not in text:
            raise ValueError("it has no prefix length")
        found = ipaddress.IPv4Interface(text)
    except ValueError as error:
        raise Refused(
            f"grid_address_ip: {text!r} cannot be the grid address ({error}): give a free IPv4 address of the "
            "servers' network with its prefix length, like 192.0.2.5/24, or nothing for none"
        ) from error
    ip, network = found.ip, found.network
    if ip.is_loopback or ip.is_multicast or ip.is_unspecified or ip.is_link_local:
        raise Refused(f"grid_address_ip: {ip} cannot be reached from other machines: choose one of the network")
    if network.prefixlen < 31 and ip in (network.network_address, network.broadcast_address):
        raise Refused(f"grid_address_ip: {ip} is the network itself or its broadcast address: choose another one")
    return str(found)


def should_hold(address: str, *, leads: bool, majority: bool, island: bool) -> bool:
    """Tell whether this server should hold the grid address now."""
    return bool(address) and ((leads and majority) or island)


def interface_for(address: str, cards: Iterable[Card], *, wanted: str = "") -> Card | None:
    """Return the card that the address belongs on: the configured one, or the one in the same network."""
    floating = ipaddress.IPv4Interface(address)
    for card in sorted(cards, key=lambda one: (one.interface, one.address)):
        if wanted and card.interface == wanted:
            return card
        if not wanted and card.address.ip != floating.ip and floating.ip in card.address.network:
            return card
    return None


def holder(held: Mapping[ServerId, bool]) -> ServerId | None:
    """Return who says that it holds the address, the first one if two do for a moment."""
    return next((server for server in sorted(held) if held[server]), None)
