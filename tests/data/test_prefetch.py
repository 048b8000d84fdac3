"""A prefetched batch is the same batch; a rank's shard of it is read once, ahead, and no more."""

import threading

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.data import Batches, Dataset, Prefetch
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel, Zero3


class Watched:
    """Rows of an array, which remembers what was read."""

    def __init__(self, array, fails=()):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.fails, self.reads, self.on_read = fails, [], lambda: None

    def __len__(self):
        return len(self.array)

    def __getitem__(self, indices):
        self.reads.append(list(indices))
        self.on_read()
        if set(self.fails) & set(indices):
            raise OSError("the disk is gone")
        return self.array[indices]


def watched(samples=40, **options):
    random = np.random.default_rng(0)
    inputs = Watched(random.standard_normal((samples, 6)).astype(np.float32), **options)
    return Dataset("watched", inputs, random.integers(0, 3, samples), 3)


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("size", [1, 3])
def test_batches_are_the_same_and_a_shard_is_read_once(size, ahead):
    dataset = watched()
    batches, plain = Batches(dataset, 7, seed=2), Batches(watched(), 7, seed=2)
    with Prefetch(batches, 1 % size, size, ahead) as prefetch:
        assert len(prefetch) == len(batches)
        for step in range(9):  # into the next epoch
            batch, expected = prefetch[step], plain[step]
            assert (batch.step, batch.seed) == (expected.step, expected.seed)
            shard, same = batch.shard(1 % size, size), expected.shard(1 % size, size)
            for part, other in zip(shard.microbatches(2), same.microbatches(2), strict=True):
                np.testing.assert_array_equal(part.inputs, other.inputs)
                np.testing.assert_array_equal(part.targets, other.targets)
            assert batch.digest() == expected.digest()
            np.testing.assert_array_equal(batch.inputs, expected.inputs)  # of all ranks: read now
    wanted = [list(plain[step].shard(1 % size, size).indices) for step in range(9)]
    assert all(dataset.inputs.reads.count(indices) == 1 for indices in wanted)


@pytest.mark.parametrize("method", [DataParallel, Zero3])
def test_training_is_the_same_and_reads_little(method):
    def run(comm, prefetched):
        dataset = watched()
        made = method(mlp((6, 8, 3)), CrossEntropy(), SGD(0.1), comm)
        batches = Batches(dataset, 8)
        with Prefetch(batches, comm.rank, comm.size) as ahead:
            source = ahead if prefetched else batches
            losses = [made.step(source[step]) for step in range(5)]
        return losses, sum(map(len, dataset.inputs.reads))

    plain, ahead = (launch(lambda c, p=p: run(c, p), 4, LocalWorld()) for p in (False, True))
    assert [losses for losses, _ in plain] == [losses for losses, _ in ahead]
    # Of each batch its shard, and its first sample, by which ranks compare batches; and one shard
    # more, of a batch that was read ahead and not asked for.
    assert all(read <= 5 * (2 + 1) + 2 for _, read in ahead)


def test_the_next_batch_is_read_while_this_one_is_computed():
    """A computation that waits until the next read has begun would wait for ever without that."""
    dataset, begun = watched(), threading.Semaphore(0)
    dataset.inputs.on_read = begun.release
    with Prefetch(Batches(dataset, 8), 0, 1) as ahead:
        for step in range(4):
            assert len(ahead[step].inputs) == 8
            for _ in range(2 if step == 0 else 1):  # this batch's read, and the next one's
                assert begun.acquire(timeout=20)
        assert ahead.read > 0 and ahead.waited > 0
    read = len(dataset.inputs.reads)
    assert read == 5, "nothing is read after the end"


def test_what_reading_raises_and_what_cannot_be():
    failing = Batches(watched(fails=range(40)), 8)
    with Prefetch(failing, 0, 1) as ahead, pytest.raises(OSError, match="the disk is gone"):
        ahead[0]
    with pytest.raises(ValueError, match=r"rank 3 is not in \[0, 3\)"):
        Prefetch(Batches(watched(), 8), 3, 3)
    with pytest.raises(ValueError, match="at least 1 batch ahead"):
        Prefetch(Batches(watched(), 8), 0, 1, ahead=0)
