"""The loop that agents and the leader's duties share: look and act, rest, and go on whatever came of it."""

import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from kmgr.clock import Clock
from kmgr.errors import KmgrError

logger = logging.getLogger(__name__)


async def rounds(once: Callable[[], Awaitable[object]], cut_short: str, *, every_s: float, clock: Clock) -> NoReturn:
    """Do `once` until cancelled, with `every_s` between two; what cuts one short is logged in these words, no more.

    That is what kmgr expects (`KmgrError`). A bug ends the loop: whoever runs it says so.
    """
    while True:
        try:
            await once()
        except KmgrError as error:
            logger.info(cut_short, extra={"cause": error.message})
        await clock.sleep(every_s)
