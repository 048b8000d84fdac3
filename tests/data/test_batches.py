"""Batches: every rank names the same global batch, and a shard is exactly a part of serial's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidist.data import Augment, Batches, Dataset, fashion_mnist
from minidist.nn import CrossEntropy
from tests.examples import examples


def images(count=23):
    raw = np.random.default_rng(0).integers(0, 256, (count, 6, 5)).astype(np.uint8)
    return Dataset("noise", raw, np.arange(count) % 3, 3, lambda raw: raw / 255)


def test_an_epoch_is_every_sample_once_and_the_next_in_another_order():
    batches = Batches(images(), 5, seed=1)
    epochs = [[batches[5 * e + i].indices for i in range(5)] for e in range(2)]
    for epoch in epochs:
        assert sorted(np.concatenate(epoch)) == list(range(23))
        assert [len(indices) for indices in epoch] == [5, 5, 5, 5, 3]
    assert (np.concatenate(epochs[0]) != np.concatenate(epochs[1])).any()


def test_a_step_is_the_same_whenever_it_is_asked_for():
    again = Batches(images(), 5, seed=1)
    expected = {step: again[step].indices.copy() for step in (7, 0, 12, 7, 3)}
    for step, indices in expected.items():
        np.testing.assert_array_equal(Batches(images(), 5, seed=1)[step].indices, indices)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_shards_and_microbatches_put_together_are_the_batch(size):
    batch = Batches(images(), 7, augment=Augment())[1]
    shards = [batch.shard(rank, size) for rank in range(size)]
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for part in (shards, [m for shard in shards for m in shard.microbatches(2)]):
        np.testing.assert_array_equal(np.concatenate([p.indices for p in part]), batch.indices)
        np.testing.assert_array_equal(np.concatenate([p.inputs for p in part]), batch.inputs)
        np.testing.assert_array_equal(np.concatenate([p.targets for p in part]), batch.targets)
        assert {p.count(CrossEntropy()) for p in part} == {7}


def test_augmentation_is_keyed_by_seed_step_and_position():
    data, augment = images(), Augment()
    first = Batches(data, 7, seed=1, augment=augment)[0]
    np.testing.assert_array_equal(Batches(data, 7, 1, augment)[0].inputs, first.inputs)
    plain = data.batch(first.indices)
    assert (plain.inputs != first.inputs).any()
    later = Batches(data, 7, seed=1, augment=augment)[4]
    same_samples = type(first)(data, first.indices, later.step, seed=1, augment=augment)
    assert (same_samples.inputs != first.inputs).any()


def test_augment_moves_and_mirrors():
    image = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4)
    middle = 0.5  # of 3 places each way: no move
    same = Augment(0.5, 1)(image, np.array([[0.9, middle, middle]]))
    np.testing.assert_array_equal(same, image)
    mirrored = Augment(0.5, 1)(image, np.array([[0.1, middle, middle]]))
    np.testing.assert_array_equal(mirrored, image[:, :, ::-1])
    moved = Augment(0.5, 1)(image, np.array([[0.9, 0.0, 0.99]]))  # first row up, last column right
    expected = [[0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0]]
    np.testing.assert_array_equal(moved[0], expected)
    colours = np.concatenate([image, 100 + image])[None]  # (1, 2, 3, 4): both channels alike
    moved = Augment(0.5, 1)(colours, np.array([[0.9, 0.0, 0.99]]))
    np.testing.assert_array_equal(moved[0, 0], expected)
    np.testing.assert_array_equal(moved[0, 1][1:, :3], 100 + np.array(expected)[1:, :3])
    with pytest.raises(ValueError, match="flip must be a probability"):
        Augment(flip=2)


def test_ignored_targets_are_not_counted():
    targets = np.array([[1, 2, -1], [1, -1, -1], [0, 0, 0]])
    data, loss = Dataset("padded", np.zeros((3, 3), np.int64), targets, 3), CrossEntropy(-1)
    batch = data.batch(np.array([0, 1]))
    assert batch.count(loss) == 3
    assert batch.shard(1, 2).count(loss) == 3  # the global count
    assert batch.shard(1, 2).own_count(loss) == 1
    assert batch.count(CrossEntropy()) == 6
    with pytest.raises(TypeError, match=r"CrossEntropy\(ignore_index=-1\)"):
        Dataset("padded", np.zeros((3, 3), np.int64), targets, 3, ignore=-1)


def test_split_is_disjoint_complete_and_by_seed():
    train, held_out = images().split(0.3, seed=4)
    assert (len(train), len(held_out)) == (16, 7)
    together = np.concatenate([train.inputs, held_out.inputs]).reshape(23, -1)
    assert len(np.unique(together, axis=0)) == 23
    again, _ = images().split(0.3, seed=4)
    np.testing.assert_array_equal(again.inputs, train.inputs)
    with pytest.raises(ValueError, match="one side empty"):
        images().split(0.001)
    assert [len(part) for part in images(20).split()] == [18, 2], "a tenth, unless told otherwise"


def test_shipped_fashion_mnist():
    train, test = fashion_mnist()
    assert (len(train), len(test), train.input_shape) == (10_000, 2_000, (28, 28))
    for part in (train, test):
        counts = np.bincount(part.targets)
        print(part, counts)
        assert (counts == len(part) // 10).all()
    inputs = train.batch(np.arange(2000)).inputs
    assert inputs.dtype == np.float32
    assert abs(inputs.mean()) < 0.05 and abs(inputs.std() - 1) < 0.05


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="batch size 24 is not in"):
        Batches(images(), 24)
    with pytest.raises(IndexError, match="count from 0"):
        Batches(images(), 4)[-1]
    with pytest.raises(ValueError, match="rank 2 is not in"):
        Batches(images(), 4)[0].shard(2, 2)
    with pytest.raises(ValueError, match="2 inputs but 3 targets"):
        Dataset("uneven", np.zeros(2), np.zeros(3), 1)


@examples(100)
@given(
    size=st.integers(1, 23),
    step=st.integers(0, 60),
    cuts=st.lists(st.integers(1, 5), max_size=3),
)
def test_any_nesting_of_shards_is_the_batch(size, step, cuts):
    batch = Batches(images(), size, seed=2)[step]
    parts = [batch]
    for cut in cuts:
        parts = [part.shard(rank, cut) for part in parts for rank in range(cut)]
    np.testing.assert_array_equal(np.concatenate([p.indices for p in parts]), batch.indices)
    np.testing.assert_array_equal(np.concatenate([p.positions for p in parts]), batch.positions)
    assert {p.count(CrossEntropy()) for p in parts} == {len(batch)}
