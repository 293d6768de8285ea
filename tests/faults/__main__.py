"""The fault lab on the command line: `make faults`, `make faults-daemon`, `make faults-plain`."""

import argparse
import json
import os
import random
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from tests.faults.run import Plan, Report, printed, run

BUILD = Path(__file__).parents[2] / "build"
SIZES = (3, 5)


def main() -> int:
    """Run with 3 and with 5 servers, half of the time each; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--servers", type=int, default=None)
    parser.add_argument("--only", default="", help="troubles to choose from, with commas between")
    parser.add_argument("--plain", action="store_true", help="bare pysyncobj: must lose something")
    parser.add_argument("--profile", choices=("log", "daemon"), default="log", help="the log alone, or all of kmgr")
    asked = parser.parse_args()
    if os.geteuid():
        print("network namespaces need root: run it with sudo", file=sys.stderr)
        return 2
    # Also when it is ended from outside, namespaces and disks are removed.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    seed = random.randrange(1_000_000) if asked.seed is None else asked.seed  # noqa: S311 - said, so that it can be repeated
    sizes = [asked.servers] if asked.servers else [3] if asked.plain else list(SIZES)
    # Alone it needs a tenth of a second for each change: more clients make up for that.
    each, pause_s = (30, 0.02) if asked.plain else (2, 0.05)
    only = tuple(name for name in asked.only.split(",") if name)
    whole = asked.profile == "daemon"
    reports: list[Report] = []
    for size in sizes:
        plan = Plan(seed, size, asked.seconds / len(sizes), each, pause_s, asked.plain, only, whole)
        name = f"{'plain-' if asked.plain else 'daemon-' if whole else ''}{size}-seed-{seed}"
        report = run(plan, BUILD / "faults" / name)
        print(printed(report), flush=True)
        reports.append(report)
    name = f"faults{'-plain' if asked.plain else '-daemon' if whole else ''}.json"
    (BUILD / name).write_text(json.dumps([asdict(report) for report in reports], indent=1) + "\n")
    return int(any(report.violations for report in reports))


if __name__ == "__main__":
    sys.exit(main())
