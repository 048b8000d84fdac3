"""Targets keep their kind, epochs end, and a raw sample is prepared as in training."""

import numpy as np
import pytest

from minidist.data import Batches, Dataset, fashion_mnist
from minidist.engine.array import defaults
from minidist.inspect import metrics
from minidist.models import cnn, mlp
from minidist.nn import CrossEntropy, MeanSquaredError


def test_targets_keep_their_kind():
    x, y = np.arange(4.0), np.array([1.395, -2.5, 0.0, 7.25])
    targets = Dataset("mine", x, y, classes=1).batch([0, 3]).targets
    np.testing.assert_array_equal(targets, np.float32([1.395, 7.25]))
    assert targets.dtype == np.float32
    with defaults(dtype="float64"):
        assert Dataset("mine", x, np.float32(y)).batch([0]).targets.dtype == np.float64
    assert Dataset("mine", x, y > 0).batch([0, 1]).targets.tolist() == [1.0, 0.0]
    assert Dataset("mine", x, np.uint8([1, 2, 3, 4])).batch([3]).targets.dtype == np.int64
    assert Dataset("mine", [[1, 2], [3, 4]], [0.5, 1]).batch([1]).inputs.tolist() == [[3, 4]]
    for bad in (np.array(["a"] * 4), np.array([None] * 4), np.zeros(4, complex)):
        with pytest.raises(TypeError, match="are not numbers: encode them"):
            Dataset("mine", x, bad)


def test_an_epoch_at_a_time():
    batches = Batches((np.zeros((7, 2)), np.arange(7)), 3, seed=1)
    assert len(batches) == 3
    for number in range(2):
        found = [batch.indices for batch in batches.epoch(number)]
        assert sorted(np.concatenate(found)) == list(range(7))
        np.testing.assert_array_equal(found[1], batches[3 * number + 1].indices)
    for call in (iter, list, enumerate):
        with pytest.raises(TypeError, match=r"which epoch.*batches\.epoch\(0\)"):
            call(batches)
    for bad in (np.zeros((7, 2)), None):
        with pytest.raises(TypeError, match="takes a Dataset, or a pair of arrays"):
            Batches(bad, 3)
    for size in (2.5, "3"):
        with pytest.raises(TypeError, match="the batch size must be an integer"):
            Batches((np.zeros((7, 2)), np.arange(7)), size)


def test_counting_reads_targets_only_if_the_loss_needs_them():
    class Unread:
        shape, dtype = (9, 2), np.dtype(np.int64)

        def __len__(self):
            return 9

        def __getitem__(self, indices):
            raise AssertionError("targets were read")

    batch = Dataset("disk", np.zeros((9, 3)), Unread(), 5).batch(np.arange(4))
    assert batch.shard(1, 2).count(CrossEntropy()) == batch.count(MeanSquaredError()) == 8
    with pytest.raises(AssertionError, match="were read"):
        batch.count(CrossEntropy(-1))


@pytest.mark.parametrize("make", [lambda: mlp((784, 16, 10)), cnn])
def test_one_raw_image_is_predicted_as_a_batch_is(make):
    _, test = fashion_mnist()
    model = make().init(0)
    expected = model(test.batch([5, 9]).inputs).data
    np.testing.assert_array_equal(metrics.predict(model, test, test.inputs[[5, 9]]), expected)
    one = metrics.predict(model, test, test.inputs[9])
    assert one.shape == (10,)
    np.testing.assert_allclose(one, expected[1], rtol=1e-4, atol=1e-5)
    for raw in (test.inputs[9], test.inputs[[5, 9]]):
        with pytest.raises((TypeError, ValueError), match=r"predict\(model, dataset, raw\)"):
            model(raw)
    with pytest.raises(ValueError, match="one sample, without a batch axis"):
        model(test.inputs_for(test.inputs[9])[0])
    with pytest.raises(ValueError, match=r"raw samples have shape \(28, 28\)"):
        test.inputs_for(test.inputs[9][:5])
    with pytest.raises(TypeError, match="prepared already"):
        test.inputs_for(test.batch([9]).inputs)


def test_raw_samples_are_prepared_in_the_dtype_that_is_stored():
    seen = []
    stored = Dataset(
        "mine",
        np.zeros((3, 2), np.float32),
        np.zeros(3),
        prepare=lambda raw: seen.append(raw) or raw,
    )
    assert stored.inputs_for(np.ones((1, 2))).dtype == stored.batch([0]).inputs.dtype == np.float32
    assert [raw.dtype for raw in seen] == [np.float32, np.float32]


def test_metrics_leave_out_what_the_loss_ignores():
    targets = np.array([0, 1, -1, -1])
    data = Dataset("padded", np.eye(3)[[0, 2, 0, 1]], targets, 3)

    def model(x):
        from minidist import Tensor

        return Tensor(x)

    loss = CrossEntropy(-1)
    assert metrics.accuracy(model, data, loss=loss) == 0.5
    assert metrics.confusion(model, data, loss=loss).sum() == 2
    assert metrics.mean_loss(model, loss, data, 3) == pytest.approx(
        loss(model(data.batch([0, 1]).inputs), targets[:2]).item()
    )
    with pytest.raises(ValueError, match=r"accuracy: targets must lie.*ignore_index"):
        metrics.accuracy(model, data)
    with pytest.raises(ValueError, match="ignores every target"):
        metrics.mean_loss(model, loss, Dataset("none", data.inputs[2:], targets[2:], 3))
