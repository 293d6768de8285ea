"""What kmgr needs from a directory of people, and how its refusals are told apart.

A wrong password and an unknown name are one error on purpose: the answer must
not tell who exists. Everything else is told apart only after the password was
right, so that it helps its owner and nobody else.
"""

from collections.abc import Sequence
from typing import Protocol

from kmgr.errors import NotLoggedIn, Unavailable
from kmgr.users.model import Person


class WrongPassword(NotLoggedIn):
    """Name or password is wrong."""

    code = "wrong_password"

    def __init__(self) -> None:
        super().__init__("This name and password do not fit together. Check capital letters and try again.")


class AccountClosed(NotLoggedIn):
    """The password was right, but the account may not log in; `code` says why."""

    code = "disabled"


class DirectoryUnreachable(Unavailable):
    """No server of the directory answered; the message names them and the cause."""

    code = "directory_unreachable"


class Directory(Protocol):
    """A place that knows people."""

    async def authenticate(self, name: str, password: str) -> Person:
        """Return who this is, or raise one of the errors above."""
        ...


class Unknown(WrongPassword):
    """This directory does not know the name: the next one may be asked. Outwardly the same as a wrong password."""


class Directories:
    """Several directories asked in order; the first that knows the name decides."""

    def __init__(self, directories: Sequence[Directory]) -> None:
        self._directories = directories

    async def authenticate(self, name: str, password: str) -> Person:
        """Return who this is.

        A directory that is unreachable is skipped, and named in the error if
        nobody else knew the name: then the person may well be right.
        """
        unreachable: DirectoryUnreachable | None = None
        refusal: WrongPassword | None = None
        for directory in self._directories:
            try:
                return await directory.authenticate(name, password)
            except Unknown as error:
                refusal = refusal or error
            except DirectoryUnreachable as error:
                unreachable = error
        raise unreachable or refusal or WrongPassword()
