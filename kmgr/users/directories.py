"""All directories of a grid as configured at each log-in: built-in accounts first, then LDAP and AD."""

from collections.abc import Callable

from kmgr.grid.port import Grid
from kmgr.users.directory import AccountClosed, Directories, Directory
from kmgr.users.ldap_directory import LdapDirectory
from kmgr.users.local_directory import LocalDirectory
from kmgr.users.model import BUILT_IN, DirectoryConfig, Person
from kmgr.users.queries import account, directories


def directories_of(grid: Grid) -> Callable[[], Directory]:
    """Return what makes the grid's directory for one log-in.

    An LDAP directory is kept while its settings are the same: it remembers which of its servers answered last.
    """
    kept: dict[DirectoryConfig, LdapDirectory] = {}

    def now() -> Directory:
        with grid.view() as db:
            configs = directories(db)
        found = {config: kept.get(config) or LdapDirectory(config) for config in configs}
        kept.clear()
        kept.update(found)
        return _OneNameOnePerson(grid, Directories([LocalDirectory(grid), *found.values()]))

    return now


class _OneNameOnePerson:
    """Keeps people of other directories from passing for a built-in account of the same name.

    Whoever is asked for first decides about the name as typed; but a directory may know its person by more names.
    """

    def __init__(self, grid: Grid, directory: Directory) -> None:
        self._grid = grid
        self._directory = directory

    async def authenticate(self, name: str, password: str) -> Person:
        """Return who this is, unless somebody else of this grid has that name."""
        person = await self._directory.authenticate(name, password)
        if person.source != BUILT_IN:
            with self._grid.view() as db:
                other = account(db, person.name)
            if other is not None:
                raise AccountClosed(
                    f"Your password is right, but {person.name} is also the name of a built-in account, which is "
                    "somebody else. Ask your administrator to rename or delete that account.",
                    code="name_taken",
                )
        return person
