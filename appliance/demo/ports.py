"""Free TCP ports, wanted ones first."""

import socket
from collections.abc import Container


def is_free(host: str, port: int) -> bool:
    """True if a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def next_free(host: str, wanted: int, taken: Container[int] = ()) -> int:
    """Return `wanted`, or the next higher port that is free and not in `taken`."""
    for port in range(wanted, min(wanted + 1000, 65536)):
        if port not in taken and is_free(host, port):
            return port
    raise OSError(f"no port from {wanted} to {wanted + 999} is free on {host}")
