"""What is set up in a new grid through its API: a golden image, a template, a user, desktops standing by.

Every step looks first, so that it can be repeated after having been cut off
anywhere. Uses nothing that the console could not do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.demo.client import Client
from appliance.demo.progress import Progress
from kmgr.errors import Unavailable

COPY_S = 300.0
READY_S = 420.0
# After a stop of all, what the state says of desktops is old until their servers have looked.
LOOKED_S = 4.0


@dataclass(frozen=True, slots=True)
class Scene:
    """The names of things, and the shape of desktops."""

    image: str = "debian-desktop"
    template: str = "office"
    user: str = "user"
    vcpus: int = 1
    memory_mib: int = 512
    standby: int = 2
    maximum: int = 8


class Director:
    """Brings a scene about through one server's API."""

    def __init__(self, admin: Client, scene: Scene, progress: Progress) -> None:
        self._admin = admin
        self._scene = scene
        self._progress = progress

    def image(self, file: Path, servers: int) -> None:
        """Import the disk and wait until every server has it."""
        if self._image() is None:
            self._progress.show(f"importing {file.name}")
            answer = self._admin.upload("POST", f"/images?name={self._scene.image}&file={file.name}", file)
            answer.ok(f"the upload of {file}")
            self._progress.say(f"golden image {self._scene.image!r} imported at one server")
        self._progress.wait(
            lambda: self._everywhere(servers),
            limit_s=COPY_S,
            hint="The servers' logs say what keeps it from being copied: build/demo/*/daemon.log",
        )
        self._progress.say(f"golden image {self._scene.image!r} is on all {servers} servers")

    def template(self) -> None:
        """Make the template and publish its image."""
        if self._find("templates", self._scene.template) is not None:
            return
        scene = self._scene
        body = {
            "name": scene.template, "notes": "What the demonstration gives its user.", "image": scene.image,
            "vcpus": scene.vcpus, "memory_mib": scene.memory_mib, "standby": scene.standby,
            "maximum": scene.maximum, "refresh": "on_logout",
        }  # fmt: skip
        self._admin.ask("POST", "/templates", body).ok("making the template")
        self._progress.say(f"template {scene.template!r} published: {scene.standby} desktops are kept standing by")

    def user(self, password: str) -> None:
        """Make the user's account and assign the template to it."""
        name = self._scene.user
        if self._find("accounts", name) is None:
            body = {"name": name, "display_name": "Demo User", "role": "user", "groups": [], "password": password}
            self._admin.ask("POST", "/accounts", body).ok(f"making the account {name!r}")
        template = self._find("templates", self._scene.template)
        if template is None:
            raise Unavailable(f"the template {self._scene.template!r} is not there: somebody removed it")
        path = f"/templates/{template['id']}/assignments"
        answer = self._admin.ask("POST", path, {"kind": "user", "subject": name})
        if answer.status != 409:
            answer.ok(f"assigning {self._scene.template!r} to {name!r}")

    def ready(self) -> float:
        """Wait until a desktop stands by; returns after how many seconds."""
        began = self._progress.elapsed_s
        heard: set[bool] = set()

        def standing_by() -> tuple[bool | None, str]:
            here, told = self._standing_by()
            heard.add(bool(here))
            # One that became ready in our sight has answered just now.
            new = False in heard or self._progress.elapsed_s - began >= LOOKED_S
            return here if new else None, told

        self._progress.wait(
            standing_by,
            limit_s=READY_S,
            hint="The console's page 'Desktops' names the failing step; the servers' logs: build/demo/*/daemon.log",
        )
        return self._progress.elapsed_s - began

    def _image(self) -> dict[str, Any] | None:
        return self._find("images", self._scene.image)

    def _find(self, what: str, name: str) -> dict[str, Any] | None:
        return next((item for item in self._admin.items(what) if item["name"] == name), None)

    def _everywhere(self, servers: int) -> tuple[bool | None, str]:
        image = self._image()
        if image is None:
            return None, "the golden image is being read in"
        here = _holders(image)
        return (True if len(here) >= servers else None), f"golden image copied to {len(here)} of {servers} servers"

    def _standing_by(self) -> tuple[bool | None, str]:
        states = [str(item["state"]) for item in self._admin.items("desktops")]
        broken = [item for item in self._admin.items("desktops") if item["state"] == "broken"]
        if len(broken) > self._scene.standby:
            raise Unavailable(f"desktops do not start: {broken[-1].get('step')}: {broken[-1].get('cause')}")
        return (True if states.count("ready") else None), f"desktops: {_counted(states)}"


def _holders(image: dict[str, Any]) -> Sequence[str]:
    """Return the servers that hold the image's newest version."""
    versions = image.get("versions") or [image]
    return [str(holding) for holding in versions[-1].get("servers", [])]


def _counted(states: Sequence[str]) -> str:
    words = [f"{states.count(state)} {state.replace('_', ' ')}" for state in sorted(set(states))]
    return ", ".join(words) or "none yet"
