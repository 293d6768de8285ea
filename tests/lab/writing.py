"""Guests that write numbered records, and what of them is found: real ones, asked through their agents."""

import base64
import json
import threading
import time

from appliance.demo.server import Server
from tests.lab import grids
from tests.lab.grids import Item

RECORDS = "/mnt/records"


class Guest:
    """The guest of one desktop, asked through its agent on whatever server it runs."""

    def __init__(self, server: Server, desktop: str) -> None:
        self.server = server
        self.desktop = desktop

    def agent(self, command: str, **arguments: object) -> object:
        """Ask the agent."""
        body = json.dumps({"execute": command, **({"arguments": arguments} if arguments else {})})
        told = grids.virsh(self.server, "qemu-agent-command", f"kmgr-{self.desktop}", body)
        return json.loads(told)["return"]

    def answers(self) -> bool:
        """True if the agent answers now."""
        try:
            self.agent("guest-ping")
        except Exception:  # noqa: BLE001 - not yet
            return False
        return True

    def sh(self, script: str) -> str:
        """Run a script and return what it says."""
        until = time.monotonic() + 30
        begun = self.begun(script, until)
        while time.monotonic() < until:
            told = self.agent("guest-exec-status", pid=begun["pid"])
            assert isinstance(told, dict)
            if told["exited"]:
                assert told.get("exitcode") == 0, told
                return base64.b64decode(told.get("out-data", "")).decode()
        raise AssertionError(f"{script} does not end")

    def begun(self, script: str, until: float) -> Item:
        """Begin a script; while a cycle of the safe copy holds the file systems still, that is refused."""
        while True:
            try:
                told = self.agent("guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True})
            except AssertionError as error:
                if "frozen" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.2)
                continue
            assert isinstance(told, dict)
            return told

    def records(self) -> set[int]:
        """Return the numbers of the records on its disk."""
        return {int(line) for line in self.sh(f"cat {RECORDS}").split()}


class Writer(threading.Thread):
    """Has a guest write numbered records with fsync, as fast as it can, and notes when each was on its disk."""

    def __init__(self, guest: Guest, *, first: int = 1) -> None:
        super().__init__(daemon=True)
        self.guest = guest
        self.next = first
        self.saved: list[tuple[int, float]] = []
        self.ended = threading.Event()

    def run(self) -> None:
        """Write until told to stop, or until the guest is gone."""
        while not self.ended.is_set():
            number, self.next = self.next, self.next + 1
            try:
                self.guest.sh(f"echo {number} >>{RECORDS} && sync {RECORDS}")
            except Exception:  # noqa: BLE001 - frozen for a moment, or dead: this record is not counted
                time.sleep(0.2)
                continue
            self.saved.append((number, time.time()))
