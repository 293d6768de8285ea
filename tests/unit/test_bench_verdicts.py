"""What the benchmark of images promises is judged by it, not by whoever reads its table."""

from tests.bench.bench_images import verdicts
from tests.bench.harness import Figure


def test_what_was_promised_is_judged_and_the_rest_is_not() -> None:
    figures = [
        Figure("1 → 7, 200 Mbit/s, 256 MiB: kmgr", 14.0, "s", 3, floor=11.2, ratio=1.25),
        Figure("1 → 7, 200 Mbit/s, 256 MiB: rsync", 80.0, "s", 1, floor=11.2, ratio=7.1),
        Figure("1 → 7, 200 Mbit/s, 256 MiB: CPU-s per GB, kmgr", 5.0, "s", 3),
        Figure("1 → 1, 1000 Mbit/s, 512 MiB: kmgr", 5.2, "s", 3, floor=4.5, ratio=1.16),
        Figure("1 → 7, 1000 Mbit/s, 512 MiB: CPU-s per GB, kmgr", 3.51, "s", 3),
        Figure("1 → 7, 1000 Mbit/s, 512 MiB: memory of a server", 39.0, "MiB", 3),
        Figure("CPU-s per GB, kmgr: both", 4.0, "s", 1),
    ]
    judged = verdicts(figures)
    assert [holds for holds, _ in judged] == [True, False, False, True]
    assert judged[1][1] == "1 → 1, 1000 Mbit/s, 512 MiB: kmgr: 1.16, promised at most 1.1: MISSED"
