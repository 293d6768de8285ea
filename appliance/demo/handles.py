"""`demo.json`: what tools need to know of a running demonstration."""

import json
from pathlib import Path
from typing import Any

from appliance.demo.cluster import ADMIN, Cluster
from appliance.demo.scene import Scene

FILE = "demo.json"


def write(grid: Cluster, scene: Scene) -> Path:
    """Write the file, readable by its owner only, because passwords are in it."""
    content = {
        "servers": _servers(grid),
        "accounts": {
            "admin": {"name": ADMIN, "password": grid.password(ADMIN)},
            "user": {"name": scene.user, "password": grid.password(scene.user)},
        },
        "template": scene.template,
        "image": scene.image,
    }
    return _put(grid.folder, content)


def refresh(grid: Cluster) -> None:
    """Write the servers anew: a daemon that was started again has another process id."""
    known = _read(grid.folder)
    if known is not None:
        _put(grid.folder, {**known, "servers": _servers(grid)})


def remove(folder: Path) -> None:
    """Remove the file: nothing runs any more."""
    (folder / FILE).unlink(missing_ok=True)


def names(folder: Path) -> tuple[str, ...]:
    """Return the names of the demonstration's servers, none if it does not run."""
    known = _read(folder)
    return () if known is None else tuple(str(server["name"]) for server in known["servers"])


def accelerator(folder: Path) -> str:
    """Return what the demonstration's desktops run on."""
    known = _read(folder)
    return "tcg" if known is None else str(known["servers"][0]["accelerator"])


def _servers(grid: Cluster) -> list[dict[str, Any]]:
    return [
        {
            "id": server.id,
            "name": server.name,
            "portal": f"https://{server.portal}",
            "grid": server.grid,
            "pid": None if server.daemon is None else server.daemon.pid,
            "data": str(server.data),
            "libvirt": None if server.libvirt is None else server.libvirt.uri,
            "accelerator": server.accelerator,
            "log": str(server.log),
        }
        for server in grid.servers
    ]


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return None
    return found


def _put(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / FILE
    part = path.with_suffix(".new")
    part.touch(mode=0o600)
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)
    return path
