"""Random stacks of layers, for images or for sequences, against PyTorch's functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minidist import Tensor, nn
from tests.fuzz.reference import compare, torch

Random = np.random.Generator
Values = list[Any]  # a layer's parameters, as arrays of one library
# A layer of ours, and the same in PyTorch: a function of (x, its parameters).
Pair = tuple[nn.Module, Callable[[Any, Values], Any]]


def functional(name: str, **settings: Any) -> Callable[[Any, Values], Any]:
    return lambda x, values: getattr(torch.nn.functional, name)(x, **settings)


def activation(random: Random) -> Pair:
    exact = bool(random.random() < 0.5)
    return [
        (nn.ReLU(), functional("relu")),
        (nn.Tanh(), lambda x, values: torch.tanh(x)),
        (nn.Sigmoid(), lambda x, values: torch.sigmoid(x)),
        (nn.SiLU(), functional("silu")),
        (nn.GELU(exact), functional("gelu", approximate="none" if exact else "tanh")),
    ][random.integers(5)]


def linear(random: Random, width: int) -> tuple[Pair, int]:
    outputs, bias = int(random.integers(1, 7)), bool(random.random() < 0.7)

    def theirs(x: Any, values: Values) -> Any:
        return x @ values[0] + (values[1] if bias else 0)

    return (nn.Linear(width, outputs, bias), theirs), outputs


def norm(random: Random, width: int) -> Pair:
    if random.random() < 0.5:
        return nn.RMSNorm(
            width
        ), lambda x, v: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * v[0]
    return nn.LayerNorm(width), lambda x, v: torch.nn.functional.layer_norm(x, (width,), *v)


def batch_norm(channels: int) -> Pair:
    return nn.BatchNorm(channels), lambda x, v: torch.nn.functional.batch_norm(
        x, None, None, *v, training=True
    )


class Masked(nn.Module):
    """Attention with a mask: causal self-attention, or that with keys left out."""

    def __init__(self, width: int, heads: int, groups: int, rotary: bool, mask: Any) -> None:
        self.inner, self.mask = nn.CausalSelfAttention(width, heads, groups, rotary), mask

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, mask=self.mask)


def attention(random: Random, shape: tuple[int, ...]) -> tuple[Pair, int] | None:
    batch, length, width = shape
    heads = int(random.choice([h for h in (1, 2, 4) if width % h == 0]))
    groups = int(random.choice([g for g in (1, 2, 4) if heads % g == 0 and g <= heads]))
    d = width // heads
    mask = None
    if random.random() < 0.6:
        axes = (batch, heads, length, length)
        mask = random.random([n if random.random() < 0.5 else 1 for n in axes]) < 0.8
        if random.random() < 0.4:
            mask = random.standard_normal(mask.shape)

    def theirs(x: Any, v: Values) -> Any:
        qkv = (x @ v[0] + v[1]).reshape(batch, length, heads + 2 * groups, d).permute(0, 2, 1, 3)
        q, k, w = qkv.split((heads, groups, groups), dim=1)
        past = torch.ones(length, length, dtype=torch.bool).tril()
        if mask is None:
            allowed: Any = past
        elif mask.dtype == bool:
            allowed = torch.tensor(mask) & past
        else:
            allowed = torch.where(past, torch.tensor(mask), -torch.inf)
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, w, attn_mask=allowed, enable_gqa=True
        )
        return out.permute(0, 2, 1, 3).reshape(batch, length, width) @ v[2] + v[3]

    return (Masked(width, heads, groups, False, mask), theirs), width


def convolution(random: Random, shape: tuple[int, ...]) -> tuple[Pair, tuple[int, ...]] | None:
    """Conv2d for (n, c, h, w), conv1d for (n, c, l)."""
    flat = len(shape) == 3
    groups = int(random.choice([g for g in (1, 2, 3) if shape[1] % g == 0]))
    outputs = groups * int(random.integers(1, 4))
    settings = [
        tuple(int(n) for n in random.integers(low, high, size=len(shape) - 2))
        for low, high in ((1, 4), (1, 3), (0, 3), (1, 3))
    ]
    kernel, stride, padding, dilation = settings
    bias = bool(random.random() < 0.5)
    given = [pair[0] for pair in settings] if flat else settings
    layer = (nn.Conv1d if flat else nn.Conv2d)(
        shape[1], outputs, given[0], given[1], given[2], groups, bias, given[3]
    )
    lengths = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    if min(lengths) < 1:
        return None

    def theirs(x: Any, v: Values) -> Any:
        conv = getattr(torch.nn.functional, "conv1d" if flat else "conv2d")
        return conv(x, v[0], v[1] if bias else None, stride, padding, dilation, groups)

    return (layer, theirs), (shape[0], outputs, *lengths)


def pooling(random: Random, shape: tuple[int, ...]) -> tuple[Pair, tuple[int, ...]] | None:
    kernel, stride = int(random.integers(1, 4)), int(random.integers(1, 3))
    padding = int(random.integers(0, kernel // 2 + 1))
    lengths = [(n + 2 * padding - kernel) // stride + 1 for n in shape[2:]]
    if min(lengths) < 1 or min(shape[2:]) + 2 * padding < kernel:
        return None
    if random.random() < 0.5:
        pair = (
            nn.MaxPool2d(kernel, stride, padding),
            functional("max_pool2d", kernel_size=kernel, stride=stride, padding=padding),
        )
    else:
        pair = (
            nn.AvgPool2d(kernel, stride, padding),
            functional("avg_pool2d", kernel_size=kernel, stride=stride, padding=padding),
        )
    return pair, (*shape[:2], *lengths)


def draw(random: Random, size: int) -> tuple[tuple[int, ...], list[Pair]]:
    """The input's shape, and layers that fit on each other."""
    kind = int(random.integers(3))  # rows of features, sequences, images
    batch = int(random.choice([1, 2, 3, 5]))
    shape: tuple[int, ...] = (batch, *(int(n) for n in random.integers(1, 7, size=kind + 1)))
    if kind == 2:
        shape = (
            batch,
            int(random.integers(1, 5)),
            *(int(n) for n in random.integers(3, 8, size=2)),
        )
    start, stack = shape, list[Pair]()
    for _ in range(10 * size):
        if len(stack) == size:
            break
        choice = random.integers(5)
        if choice == 0:
            stack.append(activation(random))
        elif choice == 1 and len(shape) < 4:
            pair, width = linear(random, shape[-1])
            stack.append(pair)
            shape = (*shape[:-1], width)
        elif choice == 2 and len(shape) < 4 and shape[-1] > 2:
            stack.append(norm(random, shape[-1]))
        elif choice == 2 and int(np.prod(shape)) // shape[1] > 3:
            stack.append(batch_norm(shape[1]))
        elif choice == 3 and len(shape) == 3 and random.random() < 0.5:
            found = attention(random, shape)
            if found is not None:
                stack.append(found[0])
        elif choice in (3, 4) and len(shape) > 2:
            pooled = len(shape) == 4 and random.random() < 0.4
            changed = (pooling if pooled else convolution)(random, shape)
            if changed is not None:
                stack.append(changed[0])
                shape = changed[1]
    return start, stack


def check_layers(random: Random, size: int) -> str:
    """One random stack: its output, and the gradients of its input and of all parameters."""
    shape, stack = draw(random, size)
    model = nn.Sequential(*[layer for layer, _ in stack])
    what = f"{shape}: {' '.join(repr(layer) for layer, _ in stack)}".replace("\n", "")
    dtype = str(random.choice(["float64", "float32"], p=[0.8, 0.2]))
    model.init(int(random.integers(1000)), dtype)
    counts = [len(layer.parameters()) for layer, _ in stack]
    values = [parameter.data.copy() for parameter in model.parameters()]
    x = random.standard_normal(shape).astype(dtype)

    def ours(given: Sequence[Tensor]) -> Tensor:
        """The model with these values; the gradients of its parameters become the tensors'."""
        for parameter, tensor in zip(model.parameters(), given[1:], strict=True):
            parameter.data = tensor.data
            parameter.on_ready[:] = [partial(hand_over, tensor)]
        model.zero_grad()
        return model(given[0])

    def theirs(given: Sequence[Any]) -> Any:
        y, rest = given[0], list(given[1:])
        for (_, function), count in zip(stack, counts, strict=True):
            y, rest = function(y, rest[:count]), rest[count:]
        return y

    compare(what, ours, theirs, [x, *values], random)
    return what


def hand_over(tensor: Tensor, parameter: nn.Parameter) -> None:
    tensor.accumulate(parameter.grad)
