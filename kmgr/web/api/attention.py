"""API: whether the user of a desktop is still there."""

from aiohttp import web

from kmgr.web import attention
from kmgr.web.api.shapes import ref
from kmgr.web.api.table import Access, Call, Route, answer


async def ask(call: Call) -> web.Response:
    """Return how a desktop stands with its idle rule."""
    return answer(await attention.of_desktop(call.services, call.session, call.part("id")))


async def extend(call: Call) -> web.Response:
    """Begin the time anew: its user is there."""
    return answer(await attention.of_desktop(call.services, call.session, call.part("id"), extend=True))


ROUTES = (
    Route(
        "GET", "/desktops/{id}/attention", ask, Access.USER,
        "How one's desktop stands with its idle rule, and when to ask again",
        {200: ref("Attention")},
    ),
    Route(
        "POST", "/desktops/{id}/attention", extend, Access.USER, "Say that one is still there: the time begins anew",
        {200: ref("Attention")},
    ),
)  # fmt: skip
