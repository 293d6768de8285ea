"""Plays a whole school day and tells what was seen: `make school-day`."""

import argparse
import sys
import time

from tests.lab.school_day import SchoolDay


def main() -> None:
    """Play it; any rule that is broken ends it with the rule."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--servers", type=int, default=100)
    asked.add_argument("--people", type=int, default=10_000)
    asked.add_argument("--personal", type=int, default=200)
    asked.add_argument("--seed", type=int, default=1)
    given = asked.parse_args()
    began, used = time.monotonic(), time.process_time()
    day = SchoolDay(servers=given.servers, people=given.people, personal=given.personal, seed=given.seed)
    told = day.run().words()
    took = f"played in {time.monotonic() - began:.0f} s, {time.process_time() - used:.0f} s of them on a processor"
    sys.stdout.write(f"{told}\n{took}\n")


if __name__ == "__main__":
    main()
