"""A method that trains on shapes sends, holds, computes and waits for what it does on numbers.

Every row of compare, on every task that it takes, at 1 to 4 ranks: messages, bytes, memory by kind,
FLOPs and virtual time, each rank and each step. The machine charges FLOPs, messages and reductions;
its launches cost nothing, and no kernel waits for memory.
"""

from functools import cache

import numpy as np
import pytest
from pairs import pairs

from minidist import LocalWorld, launch
from minidist.data import Batches, Dataset
from minidist.engine.array import defaults, work
from minidist.inspect.meter import measure_saved
from minidist.models import cnn, gpt, mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD, Adam
from minidist.parallel import METHODS
from minidist.parallel.variants import SEQUENCE_METHODS

random = np.random.default_rng(0)


@cache
def task(name):
    """A model and its data."""
    if name == "mlp":
        data = random.standard_normal((40, 12)), random.integers(0, 5, 40), 5
        return Dataset(name, *data), lambda: mlp((12, 9, 7, 6, 5))
    if name == "cnn":
        data = random.standard_normal((40, 28, 28)), random.integers(0, 10, 40), 10
        return Dataset(name, *data), cnn
    tokens = random.integers(0, 17, (40, 9))
    data = tokens[:, :-1], tokens[:, 1:], 17
    return Dataset(name, *data), lambda: gpt(17, 8, 12, 4, 2, dropout=0.1)


def train(key, name, ranks, device, optimizer=lambda: SGD(0.1, momentum=0.9), steps=2):
    """What each rank sent, held, computed and waited for in each step; and all FLOPs."""
    dataset, model = task(name)

    def run(comm):
        with defaults(device=device):
            method = (METHODS | SEQUENCE_METHODS)[key](model(), CrossEntropy(), optimizer(), comm)
            batches = Batches(dataset, 13)
            return [step(comm, method, batches[number]) for number in range(steps)]

    def step(comm, method, batch):
        comm.barrier()
        sent, trace = comm.trace.sent, comm.trace
        before = sent.messages, sent.nbytes, trace.busy, comm.time()
        kept = [array for held in method.arrays().values() for array in held]
        with measure_saved(
            [array if array.base is None else array.base for array in kept]
        ) as saved:
            loss = method.step(batch)
        assert np.isnan(loss) == (device == "phantom")
        end = comm.time()
        trace.computed(end)
        held = {kind: sum(a.nbytes for a in held) for kind, held in method.arrays().items()}
        counted = sent.messages - before[0], sent.nbytes - before[1], held, saved.peak
        return counted, (trace.busy - before[2], end - before[3])

    flops = work.flops
    results = launch(run, ranks, LocalWorld())
    return results, work.flops - flops


TASKS = ["mlp", "gpt", "cnn"]
CASES = [key for key in METHODS if key != "serial"]


SEQUENCES = [
    ("gpt", "tensor/sequence", 4),
    ("gpt", "mesh/sequence", 4),
    ("gpt", "mesh/sequence", 2),
]


@pytest.mark.parametrize(("name", "key", "ranks"), [*pairs(TASKS, CASES, [2, 3, 4, 1]), *SEQUENCES])
def test_shapes_do_what_numbers_do(name, key, ranks):
    if key == "pipeline/pipedream" and name == "gpt":
        pytest.skip("PipeDream takes no tied parameters")
    (got, got_flops), (expected, flops) = (
        train(key, name, ranks, device) for device in ("phantom", "cpu")
    )
    assert got_flops == flops
    for rank, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        for (counted, times), (other_counted, other_times) in zip(mine, theirs, strict=True):
            assert counted == other_counted, f"rank {rank}"
            assert times == pytest.approx(other_times, rel=1e-9, abs=1e-15), f"rank {rank}"


def test_serial_and_an_optimizer_of_several_passes():
    got, expected = (train("serial", "gpt", 1, device, Adam) for device in ("phantom", "cpu"))
    assert got[1] == expected[1]
    assert got[0][0][1][0] == expected[0][0][1][0]


def test_batches_are_not_read():
    class Unread:
        """Samples of a shape, on a disk that nobody has."""

        def __init__(self, *shape, dtype):
            self.shape, self.dtype = shape, np.dtype(dtype)

        def __len__(self):
            return self.shape[0]

        def __getitem__(self, indices):
            raise AssertionError("a sample was read")

    inputs = Unread(100, 28, 28, dtype="uint8")
    dataset = Dataset("disk", inputs, Unread(100, dtype="int64"), 10, lambda raw: raw / 255)
    with defaults(device="phantom"):
        batch = Batches(dataset, 8)[0].shard(1, 2)
        assert (batch.inputs.shape, batch.inputs.dtype) == ((4, 28, 28), np.float32)
        assert (batch.targets.shape, batch.targets.dtype, batch.count(CrossEntropy(0))) == (
            (4,),
            np.int64,
            8,
        )
