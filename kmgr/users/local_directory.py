"""Built-in accounts as a directory: they live in the grid's state, so they work without any other server."""

from kmgr.grid.port import Grid
from kmgr.users.directory import AccountClosed, Unknown, WrongPassword
from kmgr.users.model import BUILT_IN, Person
from kmgr.users.passwords import verify
from kmgr.users.queries import account


class LocalDirectory:
    """The accounts of the grid's own table."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    async def authenticate(self, name: str, password: str) -> Person:
        """Return the person; `Unknown` if no account has the name, so that other directories are asked."""
        with self._grid.view() as db:
            found = account(db, name)
        right = await verify(password, found.password_hash if found else None)
        if found is None:
            raise Unknown
        if not right:
            raise WrongPassword
        if found.disabled:
            raise AccountClosed("This account is disabled. Ask your administrator.")
        return Person(found.name, found.display_name, found.groups, found.role, BUILT_IN)
