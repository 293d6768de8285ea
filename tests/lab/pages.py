"""Reading pages in tests: what a browser would make of them, and what must never be in one."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_LABELLED = {"text", "password", "number", "search", "file", "radio", "checkbox"}


@dataclass
class Element:
    """One element: its name, attributes, and all text inside it."""

    tag: str
    attributes: dict[str, str]
    parents: tuple["Element", ...]
    text: str = ""

    def inside(self, tag: str) -> "Element | None":
        """Return the nearest parent of a kind."""
        return next((one for one in reversed(self.parents) if one.tag == tag), None)


@dataclass
class Page(HTMLParser):
    """A parsed page or fragment."""

    elements: list[Element] = field(default_factory=list)
    _open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        found = Element(tag, {name: value or "" for name, value in attrs}, tuple(self._open))
        self.elements.append(found)
        if tag not in _VOID:
            self._open.append(found)

    def handle_endtag(self, tag: str) -> None:
        """Close an element; the templates close what they open."""
        assert self._open, f"</{tag}> closes nothing"
        assert self._open[-1].tag == tag, f"</{tag}> where </{self._open[-1].tag}> is due"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        """Give a text to all elements around it."""
        for one in self._open:
            one.text += data

    def all(self, tag: str) -> list[Element]:
        """Return the elements of a kind."""
        return [one for one in self.elements if one.tag == tag]

    def left_open(self) -> list[str]:
        """Return the tags that were never closed."""
        return [one.tag for one in self._open]


def parse(text: str) -> Page:
    """Return a page as a browser would read it; markup must be well formed."""
    page = Page()
    page.feed(text)
    page.close()
    return page


def problems(text: str, *, csrf: str) -> list[str]:
    """Return all that is wrong with a page: what the content policy forbids, what has no name, what can be forged."""
    page = parse(text)
    return [
        *(f"<{tag}> is never closed" for tag in page.left_open()),
        *_active(page),
        *_forgeable(page, csrf),
        *_nameless(page),
        *_twice(page),
    ]


def _active(page: Page) -> list[str]:
    found = [f"inline script: {one.text[:40]}" for one in page.all("script") if "src" not in one.attributes]
    found += ["a <style> element" for _ in page.all("style")]
    for one in page.elements:
        for name, value in one.attributes.items():
            if name == "style" or name.startswith(("on", "hx-on")) or value.strip().lower().startswith("javascript:"):
                found.append(f"<{one.tag} {name}={value[:40]!r}>")
            if name in ("hx-vals", "hx-vars", "hx-headers") and value.lstrip().startswith(("js:", "javascript:")):
                found.append(f"<{one.tag} {name}> runs script")
    return found


def _forgeable(page: Page, csrf: str) -> list[str]:
    found = []
    for form in page.all("form"):
        inputs = [one for one in page.all("input") if form in one.parents]
        words = [one.attributes.get("value") for one in inputs if one.attributes.get("name") == "csrf"]
        if form.attributes.get("method") == "post" and words != [csrf]:
            found.append(f"the form of {form.attributes.get('action')} carries {words} as its word")
    return found


def _nameless(page: Page) -> list[str]:
    labels = {one.attributes.get("for") for one in page.all("label")}
    found = []
    for one in page.elements:
        told = one.attributes.get("aria-label") or one.text.strip()
        if one.tag in ("button", "a", "summary") and not told:
            found.append(f"<{one.tag} {one.attributes}> has no name")
        control = one.tag in ("select", "textarea") or (
            one.tag == "input" and one.attributes.get("type", "text") in _LABELLED
        )
        named = one.attributes.get("aria-label") or one.inside("label") or one.attributes.get("id") in labels
        if control and not named:
            found.append(f"<{one.tag} {one.attributes}> has no label")
        if one.tag == "img" and "alt" not in one.attributes:
            found.append("a picture without words")
    return found


def _twice(page: Page) -> list[str]:
    ids = [one.attributes["id"] for one in page.elements if "id" in one.attributes]
    return [f"the id {name} occurs {ids.count(name)} times" for name in sorted(set(ids)) if ids.count(name) > 1]
