"""While a rank is in a call of communication, its trace says in which; afterwards it does not."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.comm import Deadlock
from minidist.comm.trace import describe_call

CALLS = {
    "send(float64[5], to=1, tag=3)": lambda comm: comm.send(np.zeros(5), 1, tag=3),
    "recv(float32[6], source=1, tag=0)": lambda comm: comm.recv(np.zeros((2, 3), "f"), 1),
    "recv(int64[1], source=ANY, tag=7)": lambda comm: comm.recv(np.zeros(1, int), tag=7),
    "sendrecv of send(float64[2], to=1, tag=4) and recv(int64[3], source=2, tag=4)": (
        lambda comm: comm.sendrecv(np.zeros(2), 1, np.zeros(3, int), 2, tag=4)
    ),
    "barrier()": lambda comm: comm.barrier(),
}


@pytest.mark.parametrize("expected", CALLS)
def test_the_call_that_a_rank_waits_in(expected):
    """Rank 0 waits for what never comes; rank 1 looks at its trace meanwhile."""
    world, seen = LocalWorld(), []

    def function(comm):
        if comm.rank == 0:
            CALLS[expected](comm)
        elif comm.rank == 1:
            seen.append(world.traces[0].call)

    with pytest.raises(Deadlock):
        launch(function, 3, world)
    assert describe_call(seen[0]) == expected
    assert seen[0][1] == 0.0  # since when


def test_after_a_call_there_is_none():
    def function(comm):
        array, other = np.zeros(4), np.zeros(4)
        right, left = (comm.rank + 1) % 3, (comm.rank - 1) % 3
        posted = []
        calls = {
            "sendrecv": lambda: comm.sendrecv(array, right, other, left),
            "isend": lambda: comm.isend(array, right),
            "recv": lambda: comm.recv(other, left),
            "irecv": lambda: posted.append(comm.irecv(other, left, tag=1)),  # waits for nothing
            "isend to it": lambda: posted.append(comm.isend(array, right, tag=1)),
            "waits": lambda: [request.wait() for request in posted],
            "barrier": comm.barrier,
            "split": lambda: comm.split(0),
            "wait": comm.spawn(lambda stream: None).wait,
        }
        for name, call in calls.items():
            call()
            assert comm.trace.call is None, name
        return comm.trace.sent.messages

    assert launch(function, 3, LocalWorld()) == [3, 3, 3]


def test_a_stream_has_a_call_of_its_own():
    world, seen = LocalWorld(), []

    def function(comm):
        array = np.zeros(2)
        if comm.rank == 0:
            comm.spawn(lambda stream: stream.recv(array, 1)).wait()
        elif comm.rank == 2:
            comm.recv(array, 1)
        else:
            comm.send(array, 2)  # takes time, in which rank 0 begins to wait
            (stream,) = world.traces[0].streams
            seen.extend(describe_call(trace.call) for trace in (world.traces[0], stream))
            comm.spawn(lambda stream: stream.send(array, 0)).wait()

    launch(function, 3, world)
    assert seen == ["wait()", "recv(float64[2], source=1, tag=0)"]
