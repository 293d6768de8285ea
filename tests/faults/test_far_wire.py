"""What goes over a wire that was made far away arrives whole, and the wire can be made near again."""

import asyncio
import os
import sys

import pytest

from tests.faults.network import Network

ECHO = """
import socket
door = socket.create_server(("0.0.0.0", 9))
print("up", flush=True)
while True:
    line, _ = door.accept()
    while data := line.recv(65536):
        line.sendall(data)
    line.close()
"""
CALLER = """
import os, socket, sys, threading
line = socket.create_connection((sys.argv[1], 9), timeout=10)
sent = os.urandom(300_000)
threading.Thread(target=lambda: (line.sendall(sent), line.shutdown(socket.SHUT_WR))).start()
back = b""
while data := line.recv(65536):
    back += data
sys.exit(back != sent)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
async def test_everything_arrives_over_a_far_wire_and_over_the_same_one_made_near() -> None:
    network = Network(2)
    await network.open()
    echo = await asyncio.create_subprocess_exec(
        *network.inside(1, sys.executable, "-c", ECHO), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert echo.stdout is not None
        await echo.stdout.readline()

        async def called() -> int:
            words = network.inside(0, sys.executable, "-c", CALLER, network.address(1))
            caller = await asyncio.create_subprocess_exec(*words)
            async with asyncio.timeout(20):
                return await caller.wait()

        assert await called() == 0
        await network.far(1, 0.02, 0.02)
        assert await called() == 0
        await network.far(1, 0.01, 0.0)
        assert await called() == 0
        await network.near(1)
        assert await called() == 0
    finally:
        echo.kill()
        await echo.wait()
        await network.close()
