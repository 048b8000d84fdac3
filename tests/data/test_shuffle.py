"""A computed order is a permutation, looks random, and needs no memory."""

import numpy as np
import pytest

from minidist.data import Batches, Dataset, token_windows
from minidist.data import batches as batches_module
from minidist.data.shuffle import Permutation
from minidist.engine.seeds import generator


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 4096, 4097, 70_000])
def test_every_index_once(count):
    order = Permutation(count, generator(0, "order"))[:]
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_parts_are_of_the_same_order_and_seeds_differ():
    whole = Permutation(1001, generator(0, "order"))
    np.testing.assert_array_equal(
        np.concatenate([whole[i : i + 100] for i in range(0, 1001, 100)]), whole[:]
    )
    assert len(whole[990:1090]) == 11, "the end of an epoch is cut off, as a list's would be"
    assert (Permutation(1001, generator(1, "order"))[:] != whole[:]).mean() > 0.99


def test_it_looks_random():
    count = 50_000
    order = Permutation(count, generator(0, "order"))[:].astype(float)
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.02
    bins = np.histogram(order[:5000], 10, (0, count))[0]
    assert (abs(bins - 500) < 100).all(), bins


def test_an_epoch_of_batches_of_a_large_dataset(monkeypatch):
    monkeypatch.setattr(batches_module, "LISTED", 10)
    data = Dataset("numbers", np.arange(33), np.zeros(33, int), 1)
    batches = Batches(data, 10)
    epochs = [
        np.concatenate([batches[step].inputs for step in range(first, first + 4)])
        for first in (0, 4)
    ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(33))
    assert (epochs[0] != epochs[1]).any()


def test_every_window_of_more_tokens_than_memory_holds():
    tokens = np.broadcast_to(np.uint16(7), 10**13)
    batches = Batches(token_windows("large", tokens, 8, 10, stride=1), 4)
    batch = batches[10**9]
    assert batch.inputs.shape == (4, 8) and len(set(batch.indices.tolist())) == 4
    assert batch.indices.max() > 10**11
