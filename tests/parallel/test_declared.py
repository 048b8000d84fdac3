"""What a declared model would hold: ZeRO's table, and what real methods hold."""

import pytest

from minidist import LocalWorld, launch
from minidist.data import Batches, Dataset
from minidist.engine import phantom
from minidist.engine.array import defaults
from minidist.models import gpt, mlp
from minidist.nn import CrossEntropy
from minidist.optim import Adam
from minidist.parallel import DataParallel, Overlapped, Zero1, Zero2, Zero3
from minidist.parallel.declared import MIXED, BytesOf, held


def test_the_table_of_zeros_paper():
    """7.5 billion parameters on 64 ranks: arXiv 1910.02054, figure 1. Slots are not in it."""
    model = gpt(50257, 1024, 3072, 65, 24)
    table = {DataParallel: 120, Zero1: 31.4, Zero2: 16.6, Zero3: 1.9}
    for method, gigabytes in table.items():
        by_kind = held(method, model, 64, MIXED)
        shards = sum(by_kind[kind][0] for kind in ("parameters", "gradients", "optimizer"))
        assert shards / 1e9 == pytest.approx(gigabytes, rel=0.02)
        assert (by_kind["slots"][0] > 0) == (method in (Zero2, Zero3))


MODELS = {
    "mlp": (lambda: mlp((12, 9, 7, 5)), (6, 12), "float32", (6,)),
    "gpt": (lambda: gpt(17, 8, 12, 2, 2), (6, 8), "int64", (6, 8)),
}


@pytest.mark.parametrize("method", [DataParallel, Zero1, Zero2, Zero3])
@pytest.mark.parametrize("name", MODELS)
def test_a_method_holds_what_its_declared_model_says(method, name):
    declare, shape, dtype, targets = MODELS[name]
    dataset = Dataset(name, phantom.empty(shape, dtype), phantom.empty(targets, "int64"), 5)

    def run(comm):
        with defaults(device="phantom"):
            made = method(declare(), CrossEntropy(), Adam(), comm)
            made.step(Batches(dataset, 6)[0])  # the optimizer's state is made by the first step
            return sum(array.nbytes for some in made.arrays().values() for array in some)

    expected = launch(run, 3, LocalWorld())
    by_kind = held(method, declare(), 3)
    assert [sum(kinds) for kinds in zip(*by_kind.values(), strict=True)] == expected


def test_bytes_are_said_by_kind_and_other_methods_are_refused():
    psi = sum(parameter.size for parameter in mlp((4, 3)).parameters())
    assert held(DataParallel, mlp((4, 3)), 1, BytesOf(1, 10, 100)) == {
        "parameters": [psi],
        "gradients": [10 * psi],
        "optimizer": [100 * psi],
        "slots": [0],
    }
    with pytest.raises(ValueError, match="Overlapped is not one of DataParallel, Zero1"):
        held(Overlapped, mlp((4, 3)), 2)
