"""`python -m tests.bench [PART …] [--runs N] [--out FILE]`: kmgr's own figures, each beside its floor.

Everything is real: daemons, libvirt, emulated guests, disks. Nothing else should
run meanwhile; what ran shows in the spread.
"""

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from tests.bench import commit, desktop_start, image_copy, people
from tests.bench.harness import ROOT, Figure, measured, report

Part = Callable[[Path, int], Coroutine[Any, Any, list[Figure]]]

PARTS: Mapping[str, Part] = {
    "desktop": desktop_start.measure,
    "commit": commit.measure,
    "people": people.measure,
    "copy": image_copy.measure,
}
FEWEST = 10


def main() -> int:
    """Measure what was asked for, print and write it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--runs", type=int, default=FEWEST, help=f"measured runs of each (at least {FEWEST})")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown or options.runs < FEWEST:
        parser.error(f"there is no part {', '.join(sorted(unknown))}" if unknown else f"--runs: at least {FEWEST}")
    if os.geteuid() != 0:
        print("bench: namespaces and libvirt need root: run it with sudo", file=sys.stderr)
        return 1
    print(machine(), flush=True)
    figures = measured(options.parts or PARTS, lambda name, folder: asyncio.run(PARTS[name](folder, options.runs)))
    report(figures, path=options.out)
    return 0


def machine() -> str:
    """Return on what this was measured, in one line."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} x {model}, {memory} GiB, Linux {platform.release()}, Python {platform.python_version()}, "
        f"load {load:.1f} before"
    )


if __name__ == "__main__":
    sys.exit(main())
