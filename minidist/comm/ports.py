"""A machine while a program runs on it: ports that are busy, links that jitter, ranks that pause.

machine.py says what one message costs; here messages wait for each other, and random draws are
counted.
"""

from __future__ import annotations

import random
from collections import Counter

from minidist.comm.machine import Link, Machine, Pauses


class Links:
    """All links of a machine while a program runs on it: counts messages, to draw the jitter."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.found: dict[tuple[int, int], Link] = {}
        self.sent: Counter[tuple[int, int]] = Counter()

    def message(self, sender: int, receiver: int, nbytes: int) -> float:
        """Seconds that the next message of ``nbytes`` takes on this link."""
        pair = (sender, receiver)
        link = self.found.get(pair)
        if link is None:
            link = self.found[pair] = self.machine.link(sender, receiver)
        seconds = link.message(nbytes)
        if self.machine.jitter:
            # Keyed, and not drawn in order: what one link does changes nothing on another.
            draw = random.Random(f"{self.machine.seed} {sender} {receiver} {self.sent[pair]}")
            self.sent[pair] += 1
            seconds *= 1 + draw.expovariate(1 / self.machine.jitter)
        return seconds


class Ports:
    """When each rank's ports are free: it sends one message and receives one at a time.

    On a machine of two levels a rank has such a pair for each level, an object of this class.
    Messages must be given in the order in which they are ready; those that want the same port wait
    for each other in that order.
    """

    def __init__(self, ranks: int) -> None:
        self.out_free = [0.0] * ranks
        self.in_free = [0.0] * ranks

    def carry(self, sender: int, receiver: int, ready: float, seconds: float) -> float:
        """When a message ends that both sides have posted by ``ready`` and that takes ``seconds``.

        It begins when it is ready and both ports are free, and keeps both busy to its end.
        """
        end = max(ready, self.out_free[sender], self.in_free[receiver]) + seconds
        self.out_free[sender] = self.in_free[receiver] = end
        return end


class Interrupted:
    """A rank that computes, and pauses: ``compute`` adds the pauses that fall into a stretch.

    They lie at fixed places of its computing time, so it does not matter in which pieces that is
    charged.
    """

    def __init__(self, pauses: Pauses, seed: int, rank: int) -> None:
        self.pauses = pauses
        self.random = random.Random(f"pauses {seed} {rank}")
        self.until_next = self.random.expovariate(1 / pauses.every)  # seconds of computing

    def compute(self, seconds: float) -> float:
        """How long ``seconds`` of computing take."""
        paused = 0.0
        self.until_next -= seconds
        while self.until_next < 0:
            paused += self.pauses.length * self.random.expovariate(1.0)
            self.until_next += self.random.expovariate(1 / self.pauses.every)
        return seconds + paused
