"""Processes that are found again: which of them still run."""

import signal
import subprocess
import sys

from appliance.lab.processes import known

# Its first thread ends, as that of a killed process may while another still waits for a disk.
HALF_GONE = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("half", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_runs_as_long_as_one_of_its_threads_does_for_until_then_its_ports_are_taken() -> None:
    with subprocess.Popen([sys.executable, "-c", HALF_GONE], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = known(child.pid)
        assert found is not None
        assert not found.gone_within(1.0)
        found.send(signal.SIGKILL)
        assert found.gone_within(10.0)
        assert not found.alive
