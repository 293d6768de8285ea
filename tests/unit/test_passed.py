"""The fast tests are not repeated on files that they passed on, and on others they are."""

import subprocess
from pathlib import Path

from tests.passed import digest


def test_whatever_git_would_take_counts_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("build/\n")
    (tmp_path / "code.py").write_text("one")
    before = digest(tmp_path)
    assert before
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "made").write_text("anything")
    assert digest(tmp_path) == before
    (tmp_path / "code.py").write_text("two")
    assert digest(tmp_path) != before
    (tmp_path / "code.py").write_text("one")
    assert digest(tmp_path) == before
    (tmp_path / "new.py").write_text("")
    assert digest(tmp_path) != before


def test_where_git_knows_nothing_they_always_run(tmp_path: Path) -> None:
    assert digest(tmp_path) == ""
