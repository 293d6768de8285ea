"""Log lines: a constant sentence, its fields, and no secret."""

import io
import logging
import sys

from kmgr.log import FieldFormatter


def line(**fields: object) -> str:
    record = logging.makeLogRecord({"name": "kmgr.x", "levelname": "INFO", "msg": "desktop started", **fields})
    return FieldFormatter().format(record)


def test_fields_follow_the_sentence() -> None:
    assert line(desktop="d-1", took_s=1.5).endswith("INFO kmgr.x desktop started desktop=d-1 took_s=1.5")


def test_values_with_spaces_are_quoted() -> None:
    assert "cause='no room'" in line(cause="no room")


def test_whatever_sounds_like_a_secret_is_masked() -> None:
    text = line(password="hunter2", join_token="abc", session_cookie="def")
    assert "hunter2" not in text
    assert "abc" not in text
    assert "def" not in text


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        text = line(exc_info=sys.exc_info())
    assert "ValueError: why" in text


def test_set_up_sends_lines_to_the_stream() -> None:
    from kmgr import log

    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    try:
        stream = io.StringIO()
        log.set_up("warning", stream=stream)
        logging.getLogger("kmgr.y").warning("disk is full", extra={"disk": "/srv"})
        assert "WARNING kmgr.y disk is full disk=/srv" in stream.getvalue()
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
