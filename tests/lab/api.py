"""A small client of the API, for tests and benchmarks: standard library only, so that it shares no code with kmgr."""

import http.client
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and parsed body of one request."""

    status: int
    body: Any

    def ok(self) -> Any:
        """Return the body, or fail with the server's own words."""
        assert self.status < 300, f"{self.status}: {self.body}"
        return self.body


class Api:
    """One server's API as one person; `log_in` gives it a token."""

    def __init__(self, address: str, *, timeout_s: float = 30) -> None:
        self.address = address
        self.token = ""
        self._timeout_s = timeout_s
        # The demo's certificates are made on the spot; tests that check them do so themselves.
        self._tls = ssl.create_default_context()
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE

    def log_in(self, user: str, password: str) -> "Api":
        """Log in and keep the token; fails unless it is accepted."""
        self.token = self.ask("POST", "/sessions", {"user": user, "password": password}).ok()["token"]
        return self

    def ask(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, kind: str = "application/json"
    ) -> Answer:
        """Send one request under /api/v1 and return the answer, whatever its status."""
        host, _, port = self.address.rpartition(":")
        connection = http.client.HTTPSConnection(host, int(port), timeout=self._timeout_s, context=self._tls)
        headers = {"Content-Type": kind}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        try:
            connection.request(method, f"/api/v1{path}", data, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        try:
            return Answer(response.status, json.loads(text) if text else None)
        except ValueError:
            return Answer(response.status, text.decode(errors="replace"))

    def items(self, what: str) -> list[dict[str, Any]]:
        """Return all items of a list, following its cursor."""
        found: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            page = self.ask("GET", f"/{what}" + (f"?cursor={cursor}" if cursor else "")).ok()
            found += page["items"]
            cursor = page["next"]
        return found

    def reachable(self) -> bool:
        """True if the server answers at all."""
        try:
            return self.ask("GET", "/status").status < 500
        except OSError:
            return False


def wait_for(what: str, look: Callable[[], T | None], *, timeout_s: float, every_s: float = 0.25) -> T:
    """Look until something true comes back; fail with `what` and the last thing seen after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = look()
        except OSError as error:
            last = error
        else:
            if last:
                return last
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}; last seen: {last!r}")
