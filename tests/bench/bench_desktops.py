"""`python -m tests.bench.bench_desktops [PART …] [--short]`: what a desktop costs, beside its floor in the same run.

Real QEMU (emulated where there is no KVM), real disks, real daemons; medians. Nothing
else should run meanwhile. Parts: `start` (clone, define, start against libvirt's bare
create), `clones` (restored from a saved memory against booted: time, memory, disk),
`claims` (a click against an answering guest, and a storm of log-ins), `loss` (a server's
power is cut: until users, pool and a personal desktop are back; and a roll-back), `plan`
(what the balancer thinks about a hundred servers).
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from tests.bench import desktop_bare, desktop_claims, desktop_clones, desktop_loss, desktop_plan
from tests.bench.__main__ import machine
from tests.bench.harness import ROOT, Figure, measured, report

Part = Callable[[Path, bool], Coroutine[Any, Any, list[Figure]]]

PARTS: Mapping[str, Part] = {
    "start": desktop_bare.measure,
    "clones": desktop_clones.measure,
    "claims": desktop_claims.measure,
    "loss": desktop_loss.measure,
    "plan": desktop_plan.measure,
}


def main() -> int:
    """Measure what was asked for, print and write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_desktops", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--short", action="store_true", help="fewer runs: to see that it works")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench-desktops.json")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        print("bench: namespaces and libvirt need root: run it with sudo", file=sys.stderr)
        return 1
    print(machine(), flush=True)
    figures = measured(options.parts or PARTS, lambda name, folder: asyncio.run(PARTS[name](folder, options.short)))
    report(figures, path=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
