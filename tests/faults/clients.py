"""Clients that write and read through every server and record what they were told.

A change whose outcome is unknown is asked for again under its command id, at the
same server or another one, until there is an answer or patience ends.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

from tests.faults.history import History, Kind, Operation, Result
from tests.faults.lab import Lab, Place

# How long a client asks again, and how long it waits for each answer: the hasty learn less than the patient.
PATIENCE_S = (1.0, 5.0, 20.0)
ASK_S = (0.5, 2.0, 4.0)
# A key is left for another one after so many operations: long histories of one key take long to judge.
OPERATIONS_PER_KEY = 80
KEYS = 4


@dataclass
class Clients:
    """`each` clients at every place, each pausing up to `pause_s` between two operations."""

    lab: Lab
    history: History
    each: int = 2
    pause_s: float = 0.05
    acknowledged_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.running = True
        self._said = 0
        self._used = 0
        self._known: dict[str, str] = {}

    async def run(self) -> None:
        """Go on until `running` is false; every operation that was begun ends."""
        at = [(place, number) for place in self.lab.places for number in range(self.each)]
        await asyncio.gather(*(self._client(place, f"{place.number}.{number}") for place, number in at))

    async def _client(self, place: Place, name: str) -> None:
        dice = random.Random(f"{self.lab.seed} {name}")  # noqa: S311 - repeatable on purpose
        while self.running:
            await self._one(place, name, dice)
            await asyncio.sleep(dice.uniform(0, 2 * self.pause_s))

    async def _one(self, place: Place, name: str, dice: random.Random) -> None:
        chance = dice.random()
        self._used += 1
        key = f"key-{self._used // (OPERATIONS_PER_KEY * KEYS)}-{dice.randrange(KEYS)}"
        if chance < 0.55:
            await self._write(place, name, dice, key, None)
        elif chance < 0.7 and key in self._known:
            await self._write(place, name, dice, key, self._known[key])
        elif chance < 0.85 and not self.lab.plain:
            await self._read(place, name, Kind.READ, key)
        else:
            await self._read(place, name, Kind.PEEK, key)

    async def _read(self, place: Place, name: str, kind: Kind, key: str) -> None:
        called, at = time.monotonic(), place.named
        order = {"do": kind.value, "key": key, "timeout_s": ASK_S[-1]}
        answer = await self.lab.ask(place, order, timeout_s=2 * ASK_S[-1])
        if "position" in answer:
            self._known[key] = answer["seen"] or ""
            self.history.add(
                Operation(
                    name,
                    kind,
                    key,
                    called,
                    time.monotonic(),
                    Result.DONE,
                    seen=answer["seen"],
                    position=answer["position"],
                    at=at,
                )
            )

    async def _write(self, place: Place, name: str, dice: random.Random, key: str, expected: str | None) -> None:
        self._said += 1
        change = f"w{self._said}-{name}"
        kind = Kind.PUT if expected is None else Kind.SWAP
        called = time.monotonic()
        result, at = await self._insist(place, dice, change, {"key": key, "expected": expected}, kind)
        returned = time.monotonic()
        if result is Result.DONE:
            self.acknowledged_at.append(returned)
            self._known[key] = change
        self.history.add(Operation(name, kind, key, called, returned, result, id=change, expected=expected, at=at))

    async def _insist(
        self, place: Place, dice: random.Random, change: str, body: dict[str, Any], kind: Kind
    ) -> tuple[Result, str]:
        ask_s = dice.choice(ASK_S)
        order = {"do": "propose", "type": f"note.{kind}", "body": body, "id": change, "timeout_s": ask_s}
        deadline, certain = time.monotonic() + dice.choice(PATIENCE_S), True
        while time.monotonic() < deadline:
            answer = await self.lab.ask(place, order, timeout_s=ask_s + 2.0)
            if "applied" in answer:
                return Result.DONE, place.named
            if "rejected" in answer:
                return Result.REJECTED, place.named
            certain = certain and answer.get("error") in {"unavailable", "not_sent"}
            if self.lab.plain and not certain:
                # pysyncobj alone has no command ids: asking again might make the change twice.
                break
            if certain and dice.random() < 0.3:
                return Result.REFUSED, place.named
            await asyncio.sleep(dice.uniform(0.05, 0.4))
            if dice.random() < 0.5:
                place = dice.choice(self.lab.places)
        return (Result.REFUSED if certain else Result.UNKNOWN), place.named
