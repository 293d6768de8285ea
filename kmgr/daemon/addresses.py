"""Under which addresses other servers and people reach this one, when its administrator did not say."""

import socket

import psutil

from kmgr.config import Config


def own_address() -> str:
    """Return this machine's first IPv4 address that is not loopback, or 127.0.0.1 if it has none."""
    return next(iter(own_addresses()), "127.0.0.1")


def own_addresses() -> tuple[str, ...]:
    """Return this machine's IPv4 addresses that others may reach, in the order of the interfaces' names."""
    states = psutil.net_if_stats()
    return tuple(
        str(address.address)
        for name, addresses in sorted(psutil.net_if_addrs().items())
        if name != "lo" and not name.startswith(("virbr", "docker", "veth")) and name in states and states[name].isup
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    )


def grid_address(config: Config) -> str:
    """Return `host:port` for other servers."""
    return config.grid_address or f"{_reachable(config.grid_host)}:{config.grid_port}"


def web_address(config: Config) -> str:
    """Return `host:port` for people."""
    return config.web_address or f"{_reachable(config.web_host)}:{config.web_port}"


def announced(host: str, port: int) -> str:
    """Return what to announce if no address is configured: without a host the one found out at the join stays."""
    return f":{port}" if host in {"0.0.0.0", "::", ""} else f"{host}:{port}"  # noqa: S104 - compared only


def web_names(config: Config) -> frozenset[str]:
    """Return the names and addresses that the web certificate should be valid for."""
    host = web_address(config).rpartition(":")[0]
    return frozenset({host, config.name, socket.gethostname(), "localhost", "127.0.0.1"})


def _reachable(host: str) -> str:
    return own_address() if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - compared, not listened on
