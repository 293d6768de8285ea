"""How a command ends: a sentence and a status for what was foreseen, the lines to report for what was not."""

import subprocess
import sys
from pathlib import Path

import pytest

from kmgr.cli.outcome import guarded
from kmgr.errors import ConfigError, Conflict, InvariantBroken, KmgrError, OutcomeUnknown, Unavailable


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Conflict("it moved on"), 1), (Unavailable("nobody answers"), 69), (OutcomeUnknown("perhaps"), 69),
        (InvariantBroken("entry 7 came after 5"), 70), (ConfigError("name: required"), 78),
    ],
)  # fmt: skip
def test_what_is_raised_on_purpose_is_one_sentence(
    error: KmgrError, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert guarded(fail) == status
    assert capsys.readouterr().err == f"kmgr: {error.message}\n"


def test_a_bug_is_not_taken_for_a_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise KeyError("room")

    assert guarded(fail) == 70
    told = capsys.readouterr().err
    assert "KeyError: 'room'" in told
    assert told.endswith("please report it with the lines above\n")
    assert guarded(lambda: None) == 0


def test_a_part_that_cannot_be_loaded_is_a_bug_or_a_disk_that_fails(tmp_path: Path) -> None:
    lost = "import sys; sys.modules['kmgr.cli.operate'] = None; from kmgr.cli.app import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", lost, "status"], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
    )
    assert told.returncode == 70
    assert "this is a bug, or a disk that fails" in told.stderr
