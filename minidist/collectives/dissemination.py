"""Dissemination barrier: no rank returns before all ranks have called it.

In round k every rank sends an empty message to rank + 2ᵏ. It says that the sender has called, and
so have all ranks of which the sender has heard. After ⌈lg p⌉ rounds every rank has heard of all:

    time  ⌈lg p⌉ α,   messages a rank  ⌈lg p⌉, empty ones

Hensgen, Finkel, Manber, "Two algorithms for barrier synchronization", IJPP 17(1) 1988.
"""

from __future__ import annotations

import numpy as np

from minidist.collectives.cost import Cost
from minidist.comm.comm import Comm
from minidist.comm.machine import Machine


def barrier(comm: Comm) -> None:
    """Return when every rank has called this."""
    nothing, heard = np.empty(0, np.uint8), np.empty(0, np.uint8)
    distance = 1
    for _ in comm.rounds("barrier", (comm.size - 1).bit_length()):
        to, source = (comm.rank + distance) % comm.size, (comm.rank - distance) % comm.size
        comm.sendrecv(nothing, to, heard, source)
        distance *= 2


def barrier_cost(size: int, machine: Machine) -> Cost:
    """What ``barrier`` costs: the formula above."""
    rounds = (size - 1).bit_length()
    return Cost(rounds, 0, rounds * machine.message(0))
