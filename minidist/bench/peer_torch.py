"""The bench's models in PyTorch: eager mode, with PyTorch's own layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from minidist.bench.cases import Case
from minidist.bench.timing import Step


def mlp(widths: tuple[int, ...]) -> nn.Module:
    """Alternately Linear and ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(channels: int, classes: int = 10, size: int = 28, hidden: int = 128) -> nn.Module:
    """The same as ``minidist.models.cnn``."""
    c = channels
    return nn.Sequential(
        nn.Unflatten(1, (1, size)),
        nn.Conv2d(1, c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(c, 2 * c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * c * (size // 4) ** 2, hidden), nn.ReLU(),
        nn.Linear(hidden, classes),
    )  # fmt: skip


class Block(nn.Module):
    """Pre-norm transformer block with PyTorch's fused attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        b, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """The same as ``minidist.models.gpt``, tied embedding included."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.embedding.weight)


def build(kind: str, arguments: tuple[Any, ...]) -> nn.Module:
    """The model of a case."""
    makers: dict[str, Any] = {"mlp": mlp, "cnn": cnn, "gpt": GPT}
    return makers[kind](*arguments)


def step(case: Case, device: str, dtype: str, fused: bool = False) -> Step:
    """One training step, as a function; float16 by autocast and a gradient scaler.

    ``fused``: the optimizer's loop over all parameters is one function in C++, not one in Python.
    """
    torch.set_num_threads(1)
    model = build(case.kind, case.arguments).to(device)
    rule = torch.optim.SGD if case.rule == "sgd" else torch.optim.Adam
    optimizer = rule(model.parameters(), 1e-3, fused=fused or None)
    parts = [
        (torch.tensor(x, device=device), torch.tensor(y, device=device).reshape(-1))
        for x, y in case.parts()
    ]
    count = case.targets.size
    scaler = torch.amp.GradScaler(device)

    def loss(x: Any, y: Any) -> Any:
        logits = model(x).reshape(len(y), -1)
        return functional.cross_entropy(logits, y, reduction="sum") / count

    def in_float32() -> None:
        optimizer.zero_grad()
        for part in parts:
            loss(*part).backward()
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    def in_float16() -> None:
        optimizer.zero_grad()
        for part in parts:
            with torch.autocast(device, torch.float16):
                value = loss(*part)
            scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        torch.cuda.synchronize()

    return in_float16 if dtype == "float16" else in_float32


def one_element(device: str) -> Step:
    """The forward and backward of one product of two numbers."""
    torch.set_num_threads(1)
    x, y = (torch.ones(1, requires_grad=True, device=device) for _ in range(2))

    def run() -> None:
        (x * y).backward()
        if device != "cpu":
            torch.cuda.synchronize()

    return run
