"""What docs/lifecycle.md draws from the code; `python -m tests.lab.lifecycle_picture` draws it anew."""

import re
from pathlib import Path

from kmgr.provision.causes import CURES
from kmgr.provision.lifecycle import DEADLINES, IMAGE_DEADLINE, LIFECYCLE
from kmgr.provision.model import DesktopState as S
from kmgr.settings import SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"


def diagram() -> str:
    """Draw the table; a way that leads back to its own state is not drawn."""
    lines = ["stateDiagram-v2", f"    [*] --> {S.PLACED}: placed"]
    for state, ways in LIFECYCLE.items():
        lines += [f"    {state} --> {then}: {event}" for event, then in ways.items() if then is not state]
    lines.append(f"    {S.RETIRED} --> [*]: removed")
    return "\n".join(["```mermaid", *lines, "```"])


def deadlines() -> str:
    """List how long a desktop may be in which state, and what happens then."""
    lines = ["| state | may last | then |", "|---|---|---|"]
    for what, rule in [*DEADLINES.items(), (f"{S.PLACED}, without its golden image", IMAGE_DEADLINE)]:
        then = f"broken, step *{rule.step}*" if rule.then else "told as a problem of its server, tried on"
        lines.append(f"| {what} | `{rule.setting}` ({SETTINGS[rule.setting].default} s) | {then} |")
    return "\n".join(lines)


def troubles() -> str:
    """List what can break a desktop, whose fault that is, and the cure."""
    lines = ["| trouble | cause | fault of | what to do |", "|---|---|---|---|"]
    lines += [f"| `{trouble}` | {cure.what} | {cure.fault} | {cure.advice} |" for trouble, cure in CURES.items()]
    return "\n".join(lines)


DRAWN = {"diagram": diagram, "deadlines": deadlines, "troubles": troubles}


def redrawn(text: str) -> str:
    """Return the page with all that is drawn as the code has it now."""
    for name, draw in DRAWN.items():
        begin, end = f"<!-- drawn: {name} -->\n", "\n<!-- end -->"
        marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not marked.search(text):
            raise ValueError(f"{PAGE} has no place for {name}")
        now = (begin + draw() + end).replace("\\", r"\\")
        text = marked.sub(now, text)
    return text


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text()))
