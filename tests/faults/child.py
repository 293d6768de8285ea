"""What a server's process says to the lab, whatever it runs: orders come as JSON lines, answers go the same way."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

Order: TypeAlias = dict[str, Any]


def say(answer: Mapping[str, Any]) -> None:
    """Say something to the lab."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def obey(do: Callable[[Order], Awaitable[Mapping[str, Any]]]) -> None:
    """Serve orders, several at a time, until standard input ends."""
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    say({"ready": True})
    tasks = set()

    async def one(order: Order) -> None:
        say({"number": order["number"], **await do(order)})

    while line := await reader.readline():
        task = asyncio.create_task(one(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
