"""The two questions answered: make this server the first of a new grid, or let it join one.

Used by `kmgr init`, `kmgr join` and the wizard in the browser; writes
`kmgr.toml` and `identity/`, nothing else. Cut off anywhere, it can be repeated.
"""

import asyncio
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmgr import __version__
from kmgr.clock import Clock
from kmgr.config import FILE_NAME, Config, parse, render
from kmgr.daemon import addresses, folder
from kmgr.errors import ConfigError, KmgrError, Refused
from kmgr.grid import bootstrap, identity, join
from kmgr.grid.identity import Identity
from kmgr.grid.joining import Joined, Newcomer, Progress
from kmgr.grid.model import ServerRole
from kmgr.grid.preflight import Finding, warn
from kmgr.provision.libvirt_driver import connect
from kmgr.users.passwords import hash_password

_GRID_NAME_MOST = 60
_LIBVIRT_S = 5.0


@dataclass(frozen=True, slots=True)
class NewGrid:
    """Answers for a new grid."""

    grid: str
    name: str
    admin: str
    password: str = field(repr=False)


def settle(data_dir: Path, name: str, values: Mapping[str, Any]) -> Config:
    """Check and write `kmgr.toml`; what a file there already says stays unless `values` says otherwise."""
    identity.refuse_if_used(data_dir)
    folder.prepare(data_dir)
    path = data_dir / FILE_NAME
    merged = {**_already(path), **values, "name": name}
    config = parse(merged, data_dir=data_dir)
    identity.atomic_write(path, render(merged).encode())
    return config


async def found(config: Config, answers: NewGrid, *, clock: Clock) -> Identity:
    """Write the identity of a new grid whose only server and first administrator are given."""
    if not answers.grid.strip() or len(answers.grid) > _GRID_NAME_MOST:
        raise Refused(f"a grid needs a name of 1 to {_GRID_NAME_MOST} characters: it is what people will see")
    account = {
        "name": answers.admin.strip().casefold(),
        "display_name": answers.admin.strip(),
        "role": "admin",
        "groups": [],
        "password_hash": await hash_password(answers.password),
    }
    return bootstrap.create_grid(
        config.data_dir,
        grid_name=answers.grid.strip(),
        name=config.name,
        grid_address=addresses.grid_address(config),
        web_address=addresses.web_address(config),
        version=__version__,
        now_ms=clock.now_ms(),
        extra_commands=[("account.create", account)],
    )


async def join_at(
    config: Config,
    *,
    address: str,
    phrase: str,
    clock: Clock,
    role: ServerRole = ServerRole.SERVER,
    progress: Progress = lambda _: None,
) -> Joined:
    """Join the grid that answers at `address` and write this server's identity.

    Raises `PreflightStopped` with everything that is in the way, before anything has changed.
    """
    newcomer = Newcomer(
        name=config.name,
        grid_address=config.grid_address or addresses.announced(config.grid_host, config.grid_port),
        web_address=config.web_address or addresses.announced(config.web_host, config.web_port),
        version=__version__,
        listen=(config.grid_host, config.grid_port),
        role=role,
        disk_free_mib=(await asyncio.to_thread(shutil.disk_usage, config.data_dir)).free >> 20,
        findings=await _about_libvirt(config) if role is ServerRole.SERVER else (),
    )
    return await join.join_grid(config.data_dir, address, phrase, newcomer=newcomer, clock=clock, progress=progress)


async def _about_libvirt(config: Config) -> tuple[Finding, ...]:
    """Look whether libvirt answers; a server without it joins, but cannot run desktops."""
    if not config.libvirt_uri:
        return ()
    hypervisor = connect(config.libvirt_uri, grid="", deadline_s=_LIBVIRT_S)
    try:
        await hypervisor.domains()
    except KmgrError as error:
        cure = "this server joins, but runs no desktops until it answers (Debian: apt install libvirt-daemon-system)"
        return (warn("libvirt", f"libvirt at {config.libvirt_uri}: {error.message}; {cure}"),)
    finally:
        await hypervisor.close()
    return ()


def _already(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is there but cannot be read ({error}): mend or remove it") from error
