"""A client of one server's API that trusts exactly the certificate in that server's data folder.

Standard library only and blocking: it shares no code with the server it talks to.
"""

import http.client
import json
import ssl
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmgr.errors import Refused

PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and parsed body of one request."""

    status: int
    body: Any

    def ok(self, what: str = "the request") -> Any:
        """Return the body; raises `Refused` with the server's own words if it was not granted."""
        if self.status >= 300:
            raise Refused(f"{what} was answered with {self.status}: {self._words()}")
        return self.body

    def _words(self) -> str:
        match self.body:
            case {"error": {"message": str(said)}} | {"message": str(said)} | {"error": str(said)}:
                return said
            case _:
                return str(self.body)[:500]


class Client:
    """One server's API as one person; `log_in` gives it a token."""

    def __init__(self, address: str, certificate: Path) -> None:
        self.address = address
        self.token = ""
        self._certificate = certificate

    def log_in(self, user: str, password: str) -> "Client":
        """Log in and keep the token."""
        answer = self.ask("POST", "/sessions", {"user": user, "password": password})
        self.token = answer.ok(f"the log-in of {user}")["token"]
        return self

    def ask(self, method: str, path: str, body: Any = None, *, patience_s: float = PATIENCE_S) -> Answer:
        """Send one request under /api/v1; raises `OSError` if nothing answers."""
        data = None if body is None else json.dumps(body).encode()
        return self._send(method, path, data, {"Content-Type": "application/json"}, patience_s)

    def upload(self, method: str, path: str, file: Path, *, patience_s: float = 600) -> Answer:
        """Send a file as the body of a request, in pieces."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(file.stat().st_size)}
        return self._send(method, path, _pieces(file), headers, patience_s)

    def items(self, what: str, **query: str) -> list[dict[str, Any]]:
        """Return all items of a list, following its cursor."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            words = {**query, **({"cursor": cursor} if cursor else {})}
            page = self.ask("GET", f"/{what}?{urllib.parse.urlencode(words)}").ok(f"the list of {what}")
            found += page["items"]
            cursor = page["next"]
            if not cursor:
                return found

    def _send(self, method: str, path: str, data: Any, headers: dict[str, str], patience_s: float) -> Answer:
        host, _, port = self.address.rpartition(":")
        if self.token:
            headers = {**headers, "Authorization": f"Bearer {self.token}"}
        connection = http.client.HTTPSConnection(host, int(port), timeout=patience_s, context=self._tls())
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

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._certificate))
        # The certificate is its own authority: rules for authorities (Python 3.13's default) do not fit it.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(1 << 20):
            yield piece
