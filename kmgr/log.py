"""Log lines that a person can read and a program can search: a constant sentence and its fields.

`logger.info("desktop started", extra={"desktop": id, "took_s": 1.2})` prints
`2026-01-01T10:00:00.000Z INFO kmgr.provision.agent desktop started desktop=… took_s=1.2`.
Fields whose name hints at a secret are masked, whatever their value.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET_HINTS = ("password", "secret", "token", "ticket", "phrase", "private", "key_pem", "cookie")


class FieldFormatter(logging.Formatter):
    """One line per record: time in UTC, level, logger, sentence, then `name=value` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record; an exception's traceback follows on its own lines."""
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        parts = [stamp.replace("+00:00", "Z"), record.levelname, record.name, record.getMessage()]
        parts += [f"{name}={_shown(name, value)}" for name, value in _fields(record)]
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up(level: str = "info", *, stream: TextIO | None = None) -> None:
    """Send all log lines at `level` and above to `stream` (default: standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(FieldFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _fields(record: logging.LogRecord) -> list[tuple[str, object]]:
    return [(name, value) for name, value in vars(record).items() if name not in _STANDARD]


def _shown(name: str, value: object) -> str:
    if any(hint in name.lower() for hint in _SECRET_HINTS):
        return "***"
    text = str(value)
    return repr(text) if " " in text or not text or "\n" in text else text
