"""What `kmgr grid verify` may ask of the running daemon through its local door."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from kmgr.control import Operation
from kmgr.grid.verify import Verifier, same


def operations(verifier: Verifier) -> Mapping[str, Operation]:
    """Return the operations by their word."""

    async def verify(_: Mapping[str, Any]) -> Mapping[str, Any]:
        answers = await verifier.verify()
        return {"same": same(answers), "servers": [asdict(one) for one in answers]}

    return {"verify": verify}
