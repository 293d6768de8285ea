"""`kmgr plan`: grids described in files, and what is planned on them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kmgr.balancer import describe
from kmgr.balancer.plan import plan
from kmgr.cli.app import command_line
from kmgr.errors import Refused

PLANS = Path(__file__).parents[1] / "golden" / "plans"


def said(name: str) -> str:
    """Return what the command prints."""
    done = CliRunner().invoke(command_line(["plan"]), ["plan", str(PLANS / f"{name}.grid")])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", sorted(path.stem for path in PLANS.glob("*.grid")))
def test_a_described_grid_is_planned_as_before(name: str) -> None:
    assert said(name) == (PLANS / f"{name}.plan").read_text()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("host one", "begins with server, template or desktop"),
        ("server", "something is missing|not enough values"),
        ("server one sleeping", "sleeping"),
        ("server one cpus=many", "no number"),
        ("server one colour=blue", "nobody knows what colour"),
        ("template win", "something is missing"),
        ("desktop win-1 win one", "there is no 'win' above it"),
        ("server one up twice", "nobody knows what twice"),
        ("server one memory=-1", "no number"),
    ],
)
def test_a_line_that_says_nothing_useful_is_named(line: str, why: str) -> None:
    with pytest.raises(Refused, match=why) as caught:
        describe.parse(f"# a grid\n\n{line}  # here\n")
    assert "line 3" in caught.value.message


@given(st.text(max_size=200))
def test_any_text_is_a_grid_or_refused_with_the_line(text: str) -> None:
    try:
        view = describe.parse(text)
    except Refused as error:
        assert "line " in error.message
        return
    assert describe.tell(plan(view), view)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(command_line(["plan"]), ["plan", str(tmp_path / "none.grid")])
    assert "cannot be read" in str(done.exception)
