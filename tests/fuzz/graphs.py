"""Random graphs of ops: shapes with 0 and 1, broadcasting, tensors used again, three dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist import Tensor, no_grad, ops
from tests.fuzz.reference import compare, torch

Random = np.random.Generator


@dataclass(frozen=True)
class Op:
    """An op with ``inputs`` operands. ``settings(random, shapes)`` draws its arguments, or None.

    ``smooth``: no jump in its slope, so that a rounded input cannot change the gradient.
    """

    name: str
    inputs: int
    ours: Callable[..., Tensor]
    theirs: Callable[..., Any]
    settings: Callable[[Random, list[tuple[int, ...]]], tuple | None] = lambda random, shapes: ()
    smooth: bool = True


def broadcastable(random: Random, shapes: list[tuple[int, ...]]) -> tuple | None:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return None
    return ()


def an_axis(random: Random, shapes: list[tuple[int, ...]]) -> tuple | None:
    """(axis or axes or None, keepdims), over at least one element."""
    (shape,) = shapes
    if not shape or 0 in shape:
        return None
    axes = sorted(random.choice(len(shape), random.integers(1, len(shape) + 1), replace=False))
    axis = None if random.random() < 0.2 else tuple(int(a) for a in axes)
    return axis, bool(random.random() < 0.5)


def one_axis(random: Random, shapes: list[tuple[int, ...]]) -> tuple | None:
    (shape,) = shapes
    if not shape or 0 in shape:
        return None
    return (int(random.integers(-len(shape), len(shape))),)


def matrices(random: Random, shapes: list[tuple[int, ...]]) -> tuple | None:
    a, b = shapes
    if not a or not b or a[-1] != b[-2 if len(b) > 1 else -1]:
        return None
    try:
        np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        return None
    return ()


def an_order(random: Random, shapes: list[tuple[int, ...]]) -> tuple | None:
    return (tuple(int(axis) for axis in random.permutation(len(shapes[0]))),)


def a_shape(random: Random, shapes: list[tuple[int, ...]]) -> tuple | None:
    (shape,) = shapes
    size = int(np.prod(shape))
    if size == 0 or random.random() < 0.3:
        return ((size,),)
    first = int(random.choice([n for n in range(1, size + 1) if size % n == 0]))
    return ((first, size // first),)


def a_larger_shape(random: Random, shapes: list[tuple[int, ...]]) -> tuple | None:
    (shape,) = shapes
    grown = tuple(int(random.integers(1, 4)) if n == 1 else n for n in shape)
    return ((int(random.integers(1, 3)), *grown),)


def an_index(random: Random, shapes: list[tuple[int, ...]]) -> tuple | None:
    (shape,) = shapes
    if not shape or shape[0] == 0:
        return None
    choice = random.integers(4)
    if choice == 0:
        return (slice(int(random.integers(shape[0])), None, int(random.integers(1, 3))),)
    if choice == 1:
        return (int(random.integers(-shape[0], shape[0])),)
    if choice == 2:
        return (random.integers(shape[0], size=int(random.integers(0, 5))),)
    return (random.random(shape[0]) < 0.5,)


def same_but_one(random: Random, shapes: list[tuple[int, ...]]) -> tuple | None:
    a, b = shapes
    if not a or len(a) != len(b):
        return None
    differ = [axis for axis, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]]
    if len(differ) > 1:
        return None
    return (differ[0] if differ else int(random.integers(len(a))),)


def equal_shapes(random: Random, shapes: list[tuple[int, ...]]) -> tuple | None:
    return (int(random.integers(0, len(shapes[0]) + 1)),) if shapes[0] == shapes[1] else None


def positive(x: Any) -> Any:
    """Of either library: larger than 0.5."""
    return x * x + 0.5


def t(name: str) -> Callable[..., Any]:
    """A function of PyTorch, found when it is called."""

    def call(*given: Any, **named: Any) -> Any:
        found = torch
        for part in name.split("."):
            found = getattr(found, part)
        return found(*given, **named)

    return call


def over(function: Callable[..., Any]) -> Callable[..., Any]:
    """(axis, keepdims) of a reduction as PyTorch takes them."""

    def call(x: Any, axis: Any, keepdims: bool) -> Any:
        axes = tuple(range(x.ndim)) if axis is None else axis
        out = function(x, dim=axes, keepdim=keepdims)
        return out.reshape(()) if axis is None and not keepdims else out

    return call


def _ours(method: str) -> Callable[..., Tensor]:
    # None with keepdims is NumPy's: all axes stay, of length 1.
    return lambda x, axis, keepdims: getattr(x, method)(axis=axis, keepdims=keepdims)


TANH = "tanh"
OPS = [
    Op("add", 2, ops.add, lambda a, b: a + b, broadcastable),
    Op("subtract", 2, ops.subtract, lambda a, b: a - b, broadcastable),
    Op("multiply", 2, ops.multiply, lambda a, b: a * b, broadcastable),
    Op("divide", 2, lambda a, b: a / positive(b), lambda a, b: a / positive(b), broadcastable),
    Op("power", 2, lambda a, b: positive(a) ** ops.tanh(b),
       lambda a, b: positive(a) ** torch.tanh(b), broadcastable),
    Op("maximum", 2, ops.maximum, t("maximum"), broadcastable, smooth=False),
    Op("minimum", 2, ops.minimum, t("minimum"), broadcastable, smooth=False),
    Op("where", 2, lambda a, b: ops.where(a.data > 0, a, b),
       lambda a, b: torch.where(a > 0, a, b), broadcastable, smooth=False),
    Op("matmul", 2, ops.matmul, lambda a, b: a @ b, matrices),
    Op("exp", 1, lambda a: ops.exp(ops.tanh(a)), lambda a: torch.exp(torch.tanh(a))),
    Op("log", 1, lambda a: ops.log(positive(a)), lambda a: torch.log(positive(a))),
    Op("log1p", 1, lambda a: ops.log1p(a * a), lambda a: torch.log1p(a * a)),
    Op("sqrt", 1, lambda a: ops.sqrt(positive(a)), lambda a: torch.sqrt(positive(a))),
    Op("sin", 1, ops.sin, t("sin")),
    Op("cos", 1, ops.cos, t("cos")),
    Op("tanh", 1, ops.tanh, t("tanh")),
    Op("sigmoid", 1, ops.sigmoid, t("sigmoid")),
    Op("log_sigmoid", 1, ops.log_sigmoid, t("nn.functional.logsigmoid")),
    Op("softplus", 1, ops.softplus, t("nn.functional.softplus")),
    Op("silu", 1, ops.silu, t("nn.functional.silu")),
    Op("gelu", 1, ops.gelu, lambda a: torch.nn.functional.gelu(a, approximate="tanh")),
    Op("gelu exact", 1, lambda a: ops.gelu(a, exact=True), t("nn.functional.gelu")),
    Op("erf", 1, ops.erf, t("erf")),
    Op("relu", 1, ops.relu, t("relu"), smooth=False),
    Op("leaky_relu", 1, ops.leaky_relu, t("nn.functional.leaky_relu"), smooth=False),
    Op("absolute", 1, ops.absolute, t("abs"), smooth=False),
    Op("clip", 1, lambda a: a.clip(-0.7, 0.6), lambda a: a.clamp(-0.7, 0.6), smooth=False),
    Op("negative", 1, lambda a: -a, lambda a: -a),
    Op("numbers", 1, lambda a: 1.5 - 2 * a / 3.0, lambda a: 1.5 - 2 * a / 3.0),
    Op("square", 1, lambda a: a**2, lambda a: a**2),
    Op("sum", 1, _ours("sum"), over(t("sum")), an_axis),
    Op("mean", 1, _ours("mean"), over(t("mean")), an_axis),
    Op("var", 1, _ours("var"), over(lambda a, **how: torch.var(a, correction=0, **how)), an_axis),
    Op("logsumexp", 1, _ours("logsumexp"), over(t("logsumexp")), an_axis),
    Op("max", 1, _ours("max"), over(t("amax")), an_axis, smooth=False),
    Op("min", 1, _ours("min"), over(t("amin")), an_axis, smooth=False),
    Op("softmax", 1, lambda a, axis: ops.softmax(a, axis=axis),
       lambda a, axis: torch.softmax(a, axis), one_axis),
    Op("log_softmax", 1, lambda a, axis: ops.log_softmax(a, axis=axis),
       lambda a, axis: torch.log_softmax(a, axis), one_axis),
    Op("transpose", 1, lambda a, order: ops.transpose(a, order), lambda a, o: a.permute(o),
       an_order),
    Op("reshape", 1, lambda a, shape: a.reshape(*shape), lambda a, shape: a.reshape(shape),
       a_shape),
    Op("broadcast_to", 1, ops.broadcast_to, lambda a, shape: a.expand(shape), a_larger_shape),
    Op("copy", 1, ops.copy, t("clone")),
    Op("getitem", 1, lambda a, index: a[index],
       lambda a, i: a[torch.as_tensor(i) if isinstance(i, np.ndarray) else i], an_index),
    Op("concatenate", 2, lambda a, b, axis: ops.concatenate([a, b, a], axis),
       lambda a, b, axis: torch.cat([a, b, a], axis), same_but_one),
    Op("stack", 2, lambda a, b, axis: ops.stack([a, b], axis),
       lambda a, b, axis: torch.stack([a, b], axis), equal_shapes),
]  # fmt: skip

LARGEST = 20.0  # of the numbers in a program: a rounding error must stay one
ELEMENTS = 600


def a_length(random: Random) -> int:
    return int(random.choice([0, 1, 2, 3, 4], p=[0.04, 0.26, 0.3, 0.25, 0.15]))


def draw(random: Random, size: int) -> tuple[list[np.ndarray], list[tuple[Op, tuple, tuple]]]:
    """Inputs, and steps: (op, the numbers of its operands, settings). A step's result is a number.

    Later steps take what earlier ones made, again and again.
    """
    dtype = str(random.choice(["float64", "float32", "float16"], p=[0.6, 0.3, 0.1]))
    inputs = [
        (random.standard_normal([a_length(random) for _ in range(random.integers(0, 4))]) * 0.8)
        for _ in range(random.integers(1, 4))
    ]
    inputs = [np.asarray(x).astype(dtype) for x in inputs]
    made = [Tensor(x) for x in inputs]
    steps: list[tuple[Op, tuple, tuple]] = []
    with no_grad():
        for _ in range(20 * size):
            if len(steps) == size:
                break
            op = OPS[random.integers(len(OPS))]
            if dtype != "float64" and not op.smooth:
                continue
            operands = tuple(int(i) for i in random.integers(len(made), size=op.inputs))
            settings = op.settings(random, [made[i].shape for i in operands])
            if settings is None:
                continue
            y = op.ours(*[made[i] for i in operands], *settings)
            large = y.size > ELEMENTS or not np.isfinite(y.data).all()
            if large or float(np.abs(y.data).max(initial=0)) > LARGEST:
                continue
            steps.append((op, operands, settings))
            made.append(y)
    return inputs, steps


def check_graph(random: Random, size: int) -> str:
    """One random graph: its last results, and the gradients of its inputs."""
    inputs, steps = draw(random, size)
    what = " ".join(f"{op.name}{operands}" for op, operands, _ in steps)
    what = f"{inputs[0].dtype} {[x.shape for x in inputs]}: {what}"

    def run(tensors: Sequence[Any], side: str, joined: Callable) -> Any:
        made = list(tensors)
        for op, operands, settings in steps:
            made.append(getattr(op, side)(*[made[i] for i in operands], *settings))
        return joined(made[-3:])

    compare(
        what,
        lambda tensors: run(
            tensors, "ours", lambda ends: ops.concatenate([end.reshape(-1) for end in ends])
        ),
        lambda tensors: run(
            tensors, "theirs", lambda ends: torch.cat([end.reshape(-1) for end in ends])
        ),
        inputs,
        random,
    )
    return what
