"""What people typed into a form, read with all problems named at once."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from aiohttp import web

from kmgr.errors import Refused
from kmgr.whole import must_be

T = TypeVar("T")


class Form:
    """The fields of one form. Readers note problems; `check()` raises them together."""

    def __init__(self, fields: Iterable[tuple[str, str]]) -> None:
        self._fields: dict[str, list[str]] = {}
        for name, value in fields:
            self._fields.setdefault(name, []).append(value)
        self._problems: list[str] = []

    def text(self, name: str, label: str = "") -> str:
        """Return a field without blanks around it; with a `label` it must not be empty."""
        value = self._fields.get(name, [""])[0].strip()
        if label and not value:
            self._problems.append(f"{label} is missing")
        return value

    def secret(self, name: str, label: str) -> str:
        """Return a field as it was typed, blanks included; it must not be empty."""
        value = self._fields.get(name, [""])[0]
        if not value:
            self._problems.append(f"{label} is missing")
        return value

    def number(self, name: str, label: str, *, least: int, most: int) -> int:
        """Return a whole number within its limits."""
        value = self.text(name)
        if value.isascii() and value.isdecimal() and least <= int(value) <= most:
            return int(value)
        self._problems.append(f"{label} {must_be(value, least, most)}")
        return least

    def choice(self, name: str, label: str, among: Iterable[str]) -> str:
        """Return one of several values."""
        value, known = self.text(name), list(among)
        if value not in known:
            self._problems.append(f"{label}: choose {' or '.join(known)}")
        return value

    def ticked(self, name: str) -> bool:
        """Tell whether a box is ticked."""
        return name in self._fields

    def words(self, name: str) -> list[str]:
        """Return the entries of a field that are separated by commas or line ends."""
        return [word.strip() for word in self.text(name).replace("\n", ",").split(",") if word.strip()]

    def same(self, name: str, again: str, label: str) -> None:
        """Note it if two fields that must be equal are not."""
        if self._fields.get(name) != self._fields.get(again):
            self._problems.append(f"{label}: the two entries differ")

    def add_problem(self, text: str) -> None:
        """Note a problem that another check found."""
        self._problems.append(text)

    def check(self) -> None:
        """Raise `Refused` with all problems, if there are any."""
        if self._problems:
            told = "; ".join(self._problems)
            raise Refused(f"{told[0].upper()}{told[1:]}.")


async def read_form(request: web.Request) -> Form:
    """Return the form that a request carries."""
    fields = await request.post()
    return Form((name, value) for name, value in fields.items() if isinstance(value, str))


def checked(form: Form, read: Callable[[Form], T]) -> T:
    """Return what `read` makes of a form, or raise all its problems."""
    values = read(form)
    form.check()
    return values
