"""The text of a loop, run by Python on a few elements: every bit as NumPy computes the lines."""

import numpy as np
import pytest

from minidist.engine.steps import NoLoop, loop_of
from minidist.ops import activation, selection
from minidist.optim import adam, adaptive, mixed, optimizer, sgd

NUMBERS = 0.9, 0.1, 0.999, 0.001, 0.01, 1e-8
ADAM = adam._update, 5, NUMBERS
LOOPS = {  # a function, how many arrays it takes, and the numbers behind them
    "Adam": ADAM,
    "moments": (adam._moments, 4, NUMBERS[:4]),
    "direction": (adam._direction, 3, NUMBERS[4:]),
    "SGD": (sgd._descend, 3, NUMBERS[:1]),
    "Momentum": (sgd._momentum, 4, NUMBERS[:2]),
    "Nesterov": (sgd._nesterov, 4, NUMBERS[:2]),
    "AdaGrad": (adaptive._adagrad, 4, NUMBERS[:2]),
    "RMSprop": (adaptive._rmsprop, 4, NUMBERS[:4]),
    "relu": (activation._relu_backward, 3, ()),
}


def lines(function):
    """What is below the decorator, and below the one of a function inside."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def drawn(arrays, dtype):
    random = np.random.default_rng(0)
    made = [random.standard_normal((3, 5)).astype(dtype) for _ in range(arrays)]
    made[-1][:] = abs(made[-1])  # a square, or what relu gave
    made[-2][:] = abs(made[-2])
    made[-1][0] = 0
    return made


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loop_computes_what_the_lines_do(name, dtype):
    function, arrays, numbers = LOOPS[name]
    by_lines, by_loop = drawn(arrays, dtype), drawn(arrays, dtype)
    lines(function)(np, *by_lines, *numbers)
    text, _ = loop_of(
        lines(function), np.dtype(dtype), [np.ndarray] * arrays + [float] * len(numbers)
    )
    made = {}
    exec(text, made)
    made["loop"](*by_loop, *numbers)
    has_scratch = "scratch" in lines(function).__code__.co_varnames
    for index, (got, expected) in enumerate(zip(by_loop, by_lines, strict=True)):
        if not (has_scratch and index == arrays - 1):
            np.testing.assert_array_equal(got, expected, strict=True)


def test_the_old_values_are_read_before_any_is_written():
    def exchange(xp, a, b):
        old = a * 1
        a[...] = b
        b[...] = old

    made = {}
    exec(loop_of(exchange, np.dtype("f4"), [np.ndarray] * 2)[0], made)
    a, b = np.arange(3, dtype="f4"), np.arange(3, 6, dtype="f4")
    made["loop"](a, b)
    assert a.tolist() == [3, 4, 5] and b.tolist() == [0, 1, 2]


def test_a_new_array_is_filled_behind_the_arguments():
    def square(xp, x, one):
        result = x * x * one
        x += 1
        return result

    text, returns = loop_of(square, np.dtype("f8"), [np.ndarray, float])
    made = {}
    exec(text, made)
    x, result = np.arange(3.0), np.empty(3)
    made["loop"](x, 1.0, result)
    assert returns and x.tolist() == [1, 2, 3] and result.tolist() == [0, 1, 4]


def test_numbers_are_computed_in_double_and_arguments_may_have_any_name():
    def scale(xp, i, nothing, n):
        i *= (1 - n) * 3 / 7 - 2

    made = {}
    exec(loop_of(scale, np.dtype("f4"), [np.ndarray, type(None), float])[0], made)
    i = np.full(2, 3, "f4")
    made["loop"](i, None, 0.1)
    assert i.tolist() == (np.full(2, 3, "f4") * ((1 - 0.1) * 3 / 7 - 2)).tolist()


NONE = {
    "a function that is not listed": lambda xp, a: xp.exp(a, out=a),
    "a branch on values": lambda xp, a: a if a > 0 else None,
    "an index": lambda xp, a: a.__setitem__(0, 1.0),
    "an argument as the result": lambda xp, a: a,
    "a mask as the result": lambda xp, a: a > 0,
    "a sum": lambda xp, a: a.sum(),
    "what is no number of this dtype": lambda xp, a: a.__imul__(np.float64(2)),
    "a name that the loop may use itself": lambda xp, _0: _0.__imul__(2.0),
    "infinity": lambda xp, a: a.__imul__(float("inf")),
}


@pytest.mark.parametrize("function", NONE.values(), ids=NONE)
def test_what_has_no_loop_is_refused(function):
    with pytest.raises(NoLoop):
        loop_of(function, np.dtype("f4"), [np.ndarray])


@pytest.mark.parametrize(
    ("function", "dtype", "kinds"),
    [
        (adam._update, "f2", [np.ndarray] * 5 + [float] * 6),
        (selection._kept, "f4", [np.ndarray] * 3 + [float]),  # a branch on a number
        (mixed._divided, "f4", [np.ndarray, np.float64, np.ndarray]),
        (optimizer._penalise, "f4", [np.ndarray, np.ndarray, int, np.ndarray]),
    ],
)
def test_arguments_without_a_loop(function, dtype, kinds):
    with pytest.raises(NoLoop):
        loop_of(lines(function), np.dtype(dtype), kinds)
