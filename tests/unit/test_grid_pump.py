"""What the raft thread waits on."""

import socket
import threading
from collections.abc import Iterator

import pytest

from kmgr.grid.pump import READ, WRITE, Pump


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    yield here, there
    here.close()
    there.close()


def test_a_socket_is_reported_when_there_is_something_to_read(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    pump = Pump()
    pump.watch(here.fileno())
    assert list(pump.wait(0)) == []
    there.send(b"x")
    assert list(pump.wait(5)) == [(here.fileno(), READ)]
    pump.await_room(here.fileno(), wanted=True)
    assert list(pump.wait(5)) == [(here.fileno(), READ | WRITE)]
    pump.await_room(here.fileno(), wanted=False)
    here.recv(1)
    assert list(pump.wait(0)) == []


def test_to_forget_twice_is_no_trouble(pair: tuple[socket.socket, socket.socket]) -> None:
    # An error here would look like one of the disk to the thread that waits, and stop the log.
    here, there = pair
    pump = Pump()
    pump.forget(here.fileno())
    pump.watch(here.fileno())
    there.send(b"x")
    pump.forget(here.fileno())
    pump.forget(here.fileno())
    assert list(pump.wait(0)) == []


def test_the_bell_ends_the_present_wait_and_one_rung_before_ends_the_next() -> None:
    pump = Pump()
    threading.Timer(0.05, pump.ring).start()
    assert list(pump.wait(60)) == []
    pump.ring()
    pump.ring()
    assert list(pump.wait(60)) == []
    pump.ring()
    assert list(pump.wait(60)) == []
