"""This server's own file: `kmgr.toml` in its data folder. Everything grid-wide is a replicated setting instead.

Unknown keys and bad values are errors, and all of them are reported at once.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmgr.errors import ConfigError
from kmgr.whole import is_whole, must_be

FILE_NAME = "kmgr.toml"
ACCELERATORS = ("auto", "kvm", "tcg")
INSTANT_CLONES = ("shared", "plain", "never")
ROLES = ("server", "witness")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Config:
    """What one server needs to know before it can talk to anybody."""

    data_dir: Path
    name: str
    role: str = "server"
    web_host: str = "0.0.0.0"  # noqa: S104 - users come from anywhere; only HTTPS listens there
    web_port: int = 443
    web_address: str = ""
    grid_host: str = "0.0.0.0"  # noqa: S104 - peers come from anywhere; a member's certificate is required
    grid_port: int = 8440
    grid_address: str = ""
    libvirt_uri: str = "qemu:///system"
    accelerator: str = "auto"
    network: str = "user"
    max_builds: int = 0
    instant_clones: str = "shared"
    address_interface: str = ""
    mdns: bool = True
    log_level: str = "info"
    imports_folder: str = ""
    image_mbit_s: int = 0


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table of keys: how it is checked, and what it means (for docs and `kmgr.toml`)."""

    check: Callable[[Any], str | None]
    help: str


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else f"{value!r} is not a text"


def _host_name(value: Any) -> str | None:
    if not isinstance(value, str) or not 1 <= len(value) <= 63:
        return f"{value!r} is not a host name of 1 to 63 characters"
    good = all(c.isascii() and (c.isalnum() or c == "-") for c in value) and value[0] != "-" != value[-1]
    return None if good else f"{value!r} is not a host name: use letters, digits and inner hyphens"


def _port(value: Any) -> str | None:
    return None if is_whole(value, 1, 65535) else must_be(value, 1, 65535)


def _up_to(most: int) -> Callable[[Any], str | None]:
    return lambda value: None if is_whole(value, 0, most) else must_be(value, 0, most)


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"{value!r} is neither true nor false"


def _one_of(*choices: str) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        return None if value in choices else f"{value!r} is none of {', '.join(choices)}"

    return check


def _network(value: Any) -> str | None:
    good = isinstance(value, str) and (value == "user" or value.startswith(("bridge:", "network:")))
    return None if good else f"{value!r} is none of user, bridge:NAME, network:NAME"


KEYS: Mapping[str, Key] = {
    "name": Key(_host_name, "this server's name, as people see it"),
    "role": Key(_one_of(*ROLES), "what this machine is for the grid: a server, or a witness that only votes"),
    "web_host": Key(_text, "address that portal, console and API listen on"),
    "web_port": Key(_port, "HTTPS port of portal, console and API"),
    "web_address": Key(_text, "host:port under which people reach this server; empty: found by itself"),
    "grid_host": Key(_text, "address that the grid port listens on"),
    "grid_port": Key(_port, "port for the other servers (mutual TLS)"),
    "grid_address": Key(_text, "host:port under which other servers reach this one; empty: found by itself"),
    "libvirt_uri": Key(_text, "libvirt connection; empty: this server runs no desktops"),
    "accelerator": Key(_one_of(*ACCELERATORS), "auto tries KVM by booting a tiny guest; kvm and tcg decide"),
    "network": Key(_network, "what desktops' network cards are plugged into: user, bridge:NAME or network:NAME"),
    "max_builds": Key(_up_to(1000), "desktops built at the same time at most; 0: by processors and what is measured"),
    "instant_clones": Key(
        _one_of(*INSTANT_CLONES),
        "desktops restored from a saved memory share it (shared) or have copies (plain), or all boot (never)",
    ),
    "address_interface": Key(_text, "network interface for the grid address; empty: the one in its network"),
    "mdns": Key(_flag, "announce this server and look for grids by mDNS"),
    "imports_folder": Key(_text, "folder of disk images to import, a whole path; empty: imports in the data folder"),
    "image_mbit_s": Key(
        _up_to(400_000),
        "how fast this server may send images and safe copies, and receive images, Mbit/s; 0: as the grid says",
    ),
    "log_level": Key(_one_of(*LOG_LEVELS), "debug, info, warning or error"),
}


def parse(raw: Mapping[str, Any], *, data_dir: Path) -> Config:
    """Check a parsed `kmgr.toml`; raise one `ConfigError` that names every problem."""
    problems = [f"{key}: unknown setting" for key in sorted(raw) if key not in KEYS]
    if "name" not in raw:
        problems.append("name: required")
    for key, value in sorted(raw.items()):
        if key in KEYS and (problem := KEYS[key].check(value)) is not None:
            problems.append(f"{key}: {problem}")
    if not problems and raw.get("web_port", 443) == raw.get("grid_port", 8440):
        problems.append("grid_port: must differ from web_port")
    if problems:
        raise ConfigError("; ".join(problems))
    return Config(data_dir=data_dir, **raw)


def load(data_dir: Path) -> Config:
    """Read `kmgr.toml` of a data folder."""
    path = data_dir / FILE_NAME
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: run kmgr init or kmgr join first") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    try:
        return parse(raw, data_dir=data_dir)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def render(values: Mapping[str, Any]) -> str:
    """Spell a `kmgr.toml`, each key under its explanation."""
    lines = [
        "# kmgr, this server's own settings. Everything else is set in the console, for the whole grid.",
        "",
    ]
    for key, value in values.items():
        lines += [f"# {KEYS[key].help}", f"{key} = {_toml(value)}", ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
