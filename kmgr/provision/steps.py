"""The steps of what is done to a desktop, by name: whatever fails says at which step, and why in words."""

from collections.abc import Awaitable
from typing import TypeVar

from kmgr.errors import KmgrError, Refused

T = TypeVar("T")


class StepFailed(Refused):
    """A step that failed for good, by name."""

    def __init__(self, step: str, cause: str) -> None:
        super().__init__(cause)
        self.step = step


async def in_step(name: str, work: Awaitable[T]) -> T:
    """Return what `work` returns; raise `StepFailed` if it is refused, or a disk does not do it."""
    try:
        return await work
    except (Refused, OSError) as error:
        raise StepFailed(name, words(error)) from error


def words(error: Exception) -> str:
    """Return a cause as people read it."""
    if isinstance(error, KmgrError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error)
