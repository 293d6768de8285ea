"""A witness's memory: what was freed is given back, whatever lives on between the pieces."""

import subprocess
import sys
from pathlib import Path

import pytest

SPENDTHRIFT = """
from pathlib import Path
from kmgr.daemon.thrift import give_back_memory

def resident_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if "VmRSS" in line)

give_back_memory()
bytes(240_000)  # freed at once: from now on the C library would take such pieces from its heap
before = resident_kib()
large, kept = [], []
for _ in range(100):
    large.append(bytes([1]) * 240_000)
    kept.append(bytes([1]) * 1000)
large.clear()
print(resident_kib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
def test_what_was_freed_goes_back_though_small_pieces_between_live_on() -> None:
    done = subprocess.run([sys.executable, "-c", SPENDTHRIFT], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4096
