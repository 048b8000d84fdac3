"""The machine model: what a message, a reduction and a kernel cost, in seconds.

    a message of n bytes       α + n·β      ``latency`` plus bytes over ``bandwidth``
    combining arrays of n      n·γ          bytes over ``reduce_bandwidth``
    a kernel                   ``launch``, plus the longer of FLOPs over ``flops`` and of the bytes
                               that it moves over ``memory_bandwidth``; times ``slowdown``
    a sequence of inference    ``sequence``: a step's bookkeeping for it on the host
    ports                      a rank sends one message and receives one at a time on each level:
                               one inside its node, and one between nodes

Kernels are counted for arrays without numbers only (device "phantom"). For arrays with numbers, the
local world counts the FLOPs of matrix products.

(Hockney 1994; Thakur, Rabenseifner, Gropp, IJHPCA 19(1) 2005; for kernels the roofline: Williams,
Waterman, Patterson, CACM 52(4) 2009.) These rules are written here and nowhere else: the local
world's clock, all cost formulas and the prices of pipelines use them. That is why measured and
predicted times can be held equal.

Real machines are less even, and the simulator can be too: nodes of fast links joined by slower
ones, single links that differ, slow ranks, random delays (``Links``); and messages wait for ports
(``Ports``). ``PROFILES`` are machines to try, each with the source of its numbers.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

Bytes = TypeVar("Bytes", float, "np.ndarray")  # of one message, or of one for each rank


class _Wire:
    """α + n·β, for whatever has a latency and a bandwidth."""

    latency: float
    bandwidth: float

    def message(self, nbytes: Bytes) -> Bytes:
        """Seconds that a message of ``nbytes`` keeps both of its ports busy: α + n·β."""
        return self.latency + nbytes / self.bandwidth


@dataclass(frozen=True)
class Link(_Wire):
    """α in seconds a message, and bytes a second (1/β)."""

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ValueError(f"Link: bandwidth must be positive, not {self.bandwidth}")
        if not self.latency >= 0:
            raise ValueError(f"Link: latency must not be negative: {self.latency}")


@dataclass(frozen=True)
class Pauses:
    """Ranks that stop now and then, as on machines shared with others; drawn by seed and rank.

    ``every``: seconds of computing from one pause to the next, on average. ``length``: seconds
    that a pause takes. Both are exponentially distributed.
    """

    every: float
    length: float

    def __post_init__(self) -> None:
        if not (self.every > 0 and self.length >= 0):
            raise ValueError(
                f"Pauses: every must be positive and length not negative: {self.every}, "
                f"{self.length}"
            )


@dataclass(frozen=True)
class Machine(_Wire):
    """α, β, γ and the speed of one rank.

    ``latency``: seconds a message (α). ``bandwidth``: bytes a second on a link (1/β).
    ``reduce_bandwidth``: bytes a second of combining two arrays (1/γ). ``flops``: floating-point
    operations a second, and ``memory_bandwidth``: bytes a second that a kernel reads and writes;
    both as kernels reach them, a share of the peak. ``launch``: seconds before each kernel. By
    default launches cost nothing, and no kernel waits for memory. ``sequence``: seconds of the host
    for each sequence in a step of inference, beside kernels. ``slowdown``: for each straggling
    rank, how many times longer it takes to compute, for example ``{3: 4.0}``. ``pauses``: of every
    rank, at random. ``crashes``: the second on its clock at which a rank crashes, for example
    ``{2: 0.5}``; see ``Crash``.

    Two levels: with ``node=8``, ranks 0 to 7 are one node, 8 to 15 the next, and so on; messages
    between nodes take the ``network`` link. ``links``: single links that differ, by (sender,
    receiver). ``jitter``: every message takes longer by a random share, exponentially distributed
    with this mean, drawn from ``seed``, the link, and the number of the message on it.
    """

    name: str = "laptop"
    latency: float = 2e-6
    bandwidth: float = 4e9
    reduce_bandwidth: float = 8e9
    flops: float = 3e10
    memory_bandwidth: float = math.inf
    launch: float = 0.0
    slowdown: dict[int, float] = field(default_factory=dict, hash=False)
    node: int | None = None
    network: Link | None = None
    links: dict[tuple[int, int], Link] = field(default_factory=dict, hash=False)
    jitter: float = 0.0
    pauses: Pauses | None = None
    crashes: dict[int, float] = field(default_factory=dict, hash=False)
    seed: int = 0
    source: str = ""
    sequence: float = 0.0

    def __post_init__(self) -> None:
        for name in ("bandwidth", "reduce_bandwidth", "flops", "memory_bandwidth"):
            if not getattr(self, name) > 0:  # refuses NaN, too
                raise ValueError(f"Machine: {name} must be positive, not {getattr(self, name)}")
        for name in ("latency", "jitter", "launch", "sequence"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Machine: {name} must not be negative: {getattr(self, name)}")
        if below := [rank for rank in (*self.slowdown, *self.crashes) if rank < 0]:
            raise ValueError(f"Machine: ranks count from 0: there is no rank {below[0]}")
        for rank, times in self.slowdown.items():
            if not 0 < times < math.inf:
                raise ValueError(f"Machine: slowdown of rank {rank} is {times}, not in (0, ∞)")
        for rank, when in self.crashes.items():
            if not when >= 0:
                raise ValueError(f"Machine: rank {rank} cannot crash at {when} s")
        if (self.node is None) != (self.network is None) or (
            self.node is not None and self.node < 1
        ):
            raise ValueError(
                "Machine: two levels need node, the ranks in each (at least 1), and network, the "
                f"link between nodes: node={self.node}, network={self.network}"
            )

    def reduce(self, nbytes: Bytes) -> Bytes:
        """Seconds to combine ``nbytes`` into as many: n·γ."""
        return nbytes / self.reduce_bandwidth

    def compute(self, flops: int, rank: int = 0, beyond: float = 0.0) -> float:
        """Seconds that ``rank`` needs for ``flops``, and ``beyond`` these: see ``Work``."""
        return (flops / self.flops + beyond) * self.slowdown.get(rank, 1.0)

    @property
    def kernel_prices(self) -> tuple[float, float, float, float]:
        """Seconds a launch, a byte that a kernel moves, a FLOP and a sequence: for ``work``."""
        return self.launch, 1 / self.memory_bandwidth, 1 / self.flops, self.sequence

    @property
    def even(self) -> bool:
        """Whether all links are the same at all times, as the formulas assume."""
        return self.node is None and not self.links and not self.jitter

    def network_level(self) -> Machine:
        """The machine for communication between nodes: all its links are the network's."""
        if self.network is None:
            return self
        return replace(
            self,
            latency=self.network.latency,
            bandwidth=self.network.bandwidth,
            node=None,
            network=None,
        )

    def between_nodes(self, sender: int, receiver: int) -> bool:
        """Whether a message between these ranks leaves its node."""
        return self.node is not None and sender // self.node != receiver // self.node

    def link(self, sender: int, receiver: int) -> Link:
        """The link from one rank to another."""
        if (sender, receiver) in self.links:
            return self.links[sender, receiver]
        if self.network and self.between_nodes(sender, receiver):
            return self.network
        return Link(self.latency, self.bandwidth)


class Links:
    """The links of a machine while a program runs. Counts their messages, to draw the jitter."""

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


# Where not marked measured, latency is half a small-message round trip as the vendor or the paper
# reports it, and bandwidth is of one direction.
PROFILES: dict[str, Machine] = {
    "laptop": Machine(
        source="no data sheet: rounded down from two processes of one server, messages through "
        "shared memory in pages of 4 KB (minidist bench collectives) and a core's float32 products "
        "(minidist bench engine); both print what yours has",
    ),
    "gigabit": Machine(
        "gigabit",
        latency=50e-6,
        bandwidth=117e6,
        reduce_bandwidth=8e9,
        flops=3e10,
        source="TCP over 1 Gbit/s Ethernet: 125 MB/s less 6 % of headers (1460 of 1538 bytes on "
        "the wire), about 50 µs one way through the kernel and a switch",
    ),
    "hgx": Machine(
        "hgx",
        latency=3e-6,
        bandwidth=450e9,
        reduce_bandwidth=1.5e12,
        flops=4e14,
        node=8,
        network=Link(6e-6, 50e9),
        source="8 H100 a node: NVLink 4, 900 GB/s both ways, so 450 GB/s (NVIDIA H100 data sheet); "
        "InfiniBand NDR, 400 Gbit/s a GPU, so 50 GB/s (ConnectX-7 data sheet); reading two and "
        "writing one array at 3.35 TB/s of HBM is 1.1 to 1.7 TB/s of result; 40 % of 989 "
        "TFLOP/s of dense bfloat16; latencies are of the order that NCCL shows",
    ),
    "h100": Machine(
        "h100",
        latency=6e-6,
        bandwidth=450e9,
        reduce_bandwidth=1.43e12,
        flops=0.67 * 989e12,
        memory_bandwidth=0.85 * 3.35e12,
        launch=30e-6,
        node=8,
        network=Link(37e-6, 50e9),
        source="as hgx, with kernels: 67 % of the peak of bfloat16 and 85 % of the memory's "
        "bandwidth are measured on one H100 by this package (docs/gpu.md: large products, large "
        "copies), and so is the launch: a step's time over its kernels, where the host is the "
        "limit. Latencies are what a step of NCCL's rings takes in published tables of bandwidth "
        "by message size: 5 to 7 µs in a node, 30 to 44 µs between nodes. float32: flops=51e12",
    ),
    "a100": Machine(
        "a100",
        latency=6e-6,
        bandwidth=300e9,
        reduce_bandwidth=0.87e12,
        flops=0.67 * 312e12,
        memory_bandwidth=0.85 * 2.04e12,
        launch=30e-6,
        node=8,
        network=Link(37e-6, 25e9),
        source="8 A100 80GB a node: NVLink 3, 600 GB/s both ways, so 300 GB/s; 312 TFLOP/s of "
        "dense bfloat16 and 2.04 TB/s of HBM2e (NVIDIA A100 data sheet); InfiniBand HDR, 200 "
        "Gbit/s a GPU, so 25 GB/s (DGX A100 data sheet). Shares, launch and latencies are those "
        "of h100: nothing was measured on an A100",
    ),
}


def profile(name: str) -> Machine:
    """A named machine of ``PROFILES``."""
    if name not in PROFILES:
        raise ValueError(f"unknown machine {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
