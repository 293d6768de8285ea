"""One run of the fault lab: grow a grid, let troubles and clients loose on it, heal it, judge what is left."""

import asyncio
import itertools
import json
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.checker import MOST_STEPS, judge, thin
from tests.faults.clients import Clients
from tests.faults.history import Held, History, Result
from tests.faults.lab import Broken, Lab
from tests.faults.troubles import Troubles

REVIVE_S = 1.0
# So soon after a kill of the leader everybody has noticed.
LOOK_S = 2.0
SHOWN = 20
KIND_CHARACTERS = 30


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: so many servers for so long, decided by a seed; kmgr's log, all of kmgr, or plain pysyncobj."""

    seed: int
    size: int = 3
    seconds: float = 60.0
    each: int = 2
    pause_s: float = 0.05
    plain: bool = False
    # Troubles to choose from; all if none is named.
    only: tuple[str, ...] = ()
    whole: bool = False


@dataclass
class Report:
    """What a run did and what was found."""

    plan: Plan
    violations: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    words: dict[str, int] = field(default_factory=dict)


def run(plan: Plan, keep: Path) -> Report:
    """Do it; the history and the servers' logs of the last run stay in `keep`."""
    shutil.rmtree(keep, ignore_errors=True)
    keep.mkdir(parents=True)
    folder = Path(tempfile.mkdtemp(prefix="kmgr-faults-"))
    report = Report(plan)
    try:
        asyncio.run(_run(folder, keep, report))
    finally:
        for log in folder.glob("*.log"):
            shutil.copy(log, keep / log.name)
        (keep / "told").write_text("\n".join(report.told) + "\n")
        shutil.rmtree(folder)
    return report


async def _run(folder: Path, keep: Path, report: Report) -> None:
    plan = report.plan
    lab = Lab(folder, plan.size, plan.seed, plain=plan.plain, whole=plan.whole, told=report.told)
    history = History(keep / "history.jsonl")
    try:
        await lab.open()
        await _disturb(lab, history, report)
    except Broken as error:
        report.violations.append(str(error))
    finally:
        history.close()
        await lab.close()
    report.violations += lab.broken
    report.words = dict(lab.words)


async def _disturb(lab: Lab, history: History, report: Report) -> None:
    plan = report.plan
    clients = Clients(lab, history, each=plan.each, pause_s=plan.pause_s)
    troubles = Troubles(lab, plan.only)
    began = time.monotonic()
    reviving = asyncio.create_task(_revive(lab))
    working = asyncio.create_task(clients.run())
    making = asyncio.create_task(troubles.run())
    try:
        await asyncio.wait([working, making], timeout=plan.seconds, return_when=asyncio.FIRST_EXCEPTION)
        troubles.running = False
        await making
        await lab.heal()
        ended = time.monotonic()
        await asyncio.sleep(1)
        clients.running = False
        await working
    finally:
        for task in (reviving, working, making):
            task.cancel()
        await asyncio.gather(reviving, working, making, return_exceptions=True)
    report.figures = _figures(clients, troubles, history, began, ended)
    await lab.level()
    await _judge(lab, history, report)


async def _revive(lab: Lab) -> None:
    while True:
        await asyncio.sleep(REVIVE_S)
        await lab.revive()


async def _judge(lab: Lab, history: History, report: Report) -> None:
    dumps = await asyncio.gather(*(lab.ask(place, {"do": "dump"}, timeout_s=60) for place in lab.places))
    # A heartbeat's verdict may come between two dumps: those of the same entry are compared.
    for _ in range(20):
        if len({dump.get("applied") for dump in dumps}) == 1:
            break
        await lab.level()
        dumps = await asyncio.gather(*(lab.ask(place, {"do": "dump"}, timeout_s=60) for place in lab.places))
    if len({dump.get("digest") for dump in dumps}) != 1:
        digests = [
            (place.server, dump.get("applied"), dump.get("digest"))
            for place, dump in zip(lab.places, dumps, strict=True)
        ]
        report.violations.append(f"the states differ: {digests}")
    for place, dump in zip(lab.places, dumps, strict=True):
        state = [Held(*one) for one in dump.get("held", ())]
        verdict = judge(history.operations, state, MOST_STEPS // 100 if lab.plain else MOST_STEPS)
        report.violations += [f"{place.server}: {found}" for found in verdict.violations]
        report.violations += [] if lab.plain else thin(verdict)
        report.figures["keys judged, not judged"] = [verdict.judged, len(verdict.undecided)]
        if len({dump.get("digest") for dump in dumps}) == 1:
            break  # the others hold the same
    report.figures["changes held"] = len(dumps[0].get("held", ()))


def _figures(clients: Clients, troubles: Troubles, history: History, began: float, ended: float) -> dict[str, Any]:
    results = Counter(f"{op.kind} {op.result}" for op in history)
    at = [began, *(one for one in sorted(clients.acknowledged_at) if one <= ended), ended]
    gaps = list(itertools.pairwise(at))
    killed = [begins for name, begins, _ in troubles.mended if name == "kill_leader"]
    back = [max(b - a for a, b in gaps if b >= begins and a <= begins + LOOK_S) for begins in killed]
    return {
        "seconds": round(ended - began, 1),
        "troubles": dict(sorted(troubles.count.items())),
        "operations": dict(sorted(results.items())),
        "acknowledged changes": len(clients.acknowledged_at),
        "unknown": sum(op.result is Result.UNKNOWN for op in history),
        "refused": sum(op.result is Result.REFUSED for op in history),
        "longest without an acknowledged change, s": round(max(b - a for a, b in gaps), 2),
        "longest pause after each kill of the leader, s": sorted(round(one, 2) for one in back),
    }


def printed(report: Report) -> str:
    """Return the report for people."""
    plan = report.plan
    what = "plain pysyncobj" if plan.plain else "all of kmgr" if plan.whole else "kmgr"
    lines = [f"fault lab: {plan.size} servers of {what}, seed {plan.seed}"]
    for name, value in report.figures.items():
        lines.append(f"  {name}: {json.dumps(value) if isinstance(value, dict | list) else value}")
    for words, count in sorted(report.words.items()):
        lines.append(f"  {count} times: {words}")
    kinds = Counter(text.partition(": ")[2].partition(": ")[0][:KIND_CHARACTERS] for text in report.violations)
    lines.append(f"  violations: {len(report.violations)} {dict(kinds) if kinds else ''}")
    lines += [f"    {text}" for text in report.violations[:SHOWN]]
    if report.violations:
        lines.append(f"  again: {again(plan)}")
    return "\n".join(lines)


def again(plan: Plan) -> str:
    """Return the command that repeats a run."""
    target = "faults-plain" if plan.plain else "faults-daemon" if plan.whole else "faults"
    return f"make {target} SECONDS={plan.seconds:g} SEED={plan.seed} SERVERS={plan.size}" + (
        f" ONLY={','.join(plan.only)}" if plan.only else ""
    )
