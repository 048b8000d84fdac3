"""The plan: for each parameter of a serial model, how it is cut over the ranks of the tensor axis.

    >>> from minidist.models import mlp
    >>> print(show(mlp((784, 128, 64, 10)), 2))
    parameter   whole       cut       on each rank
    1.weight    (784, 128)  columns   (784, 64)
    1.bias      (128,)      columns   (64,)
    3.weight    (128, 64)   rows      (64, 64)
    3.bias      (64,)       whole     (64,)
    5.weight    (64, 10)    columns   (64, 5)
    5.bias      (10,)       columns   (5,)

``plan_for`` makes it. In an MLP, columns and rows take turns, so that two layers need one sum; if
a last layer has no partner, its outputs stay cut, and the loss is computed from the parts. In a
transformer block, attention goes by heads and the MLP by columns and rows; a table of tokens is cut
by vocabulary. What has few numbers and is needed whole (norms, positions, biases after a sum) stays
whole. To cut otherwise, give patterns: ``{"2.attention.*": "whole"}``; each part of a model that
is cut together must be kept whole together.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from minidist import nn
from minidist.models.gpt import Block, Embed, Head
from minidist.nn.module import Module
from minidist.parallel.tensor.cut import Cut, by_heads, even

Plan = Mapping[str, str]  # by name of a parameter (or pattern): a kind of cut
KINDS = ("whole", "columns", "rows", "heads", "vocabulary")

# Applied to each element alone: they take a part of their input as well as all of it.
ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Dropout)


def plan_for(model: nn.Sequential, ranks: int) -> dict[str, str]:
    """The kind of cut of every parameter of a declared model."""
    plan = dict.fromkeys(model.named_parameters(), "whole")
    _plan_row(plan, model, "", ranks, ends=True)
    return plan


def _plan_row(
    plan: dict[str, str], row: nn.Sequential, prefix: str, ranks: int, ends: bool
) -> None:
    """Layers one after the other; ``ends``: the model's output may stay cut."""
    first: tuple[str, nn.Linear] | None = None  # a linear layer that waits for its partner
    for name, layer in row.blocks.items():
        path = f"{prefix}{name}."
        if isinstance(layer, nn.Linear):
            if first is not None:
                _columns(plan, *first)
                plan[f"{path}weight"] = "rows"
                first = None
            elif layer.weight.declared[1] >= ranks:
                first = path, layer
        elif not isinstance(layer, ELEMENTWISE):
            first = None  # it needs its input whole
            _plan_layer(plan, layer, path, ranks)
    if first is not None and ends:
        _columns(plan, *first)


def _columns(plan: dict[str, str], path: str, linear: nn.Linear) -> None:
    plan[f"{path}weight"] = "columns"
    if linear.bias is not None:
        plan[f"{path}bias"] = "columns"


def _plan_layer(plan: dict[str, str], layer: Module, path: str, ranks: int) -> None:
    if isinstance(layer, nn.Residual):
        _plan_row(plan, layer.inner, f"{path}inner.", ranks, ends=False)
    elif isinstance(layer, nn.CausalSelfAttention):
        for name in _names(layer.qkv, f"{path}qkv."):
            plan[name] = "heads"
        plan[f"{path}out.weight"] = "rows"
    elif isinstance(layer, Block):
        _plan_layer(plan, layer.attention, f"{path}attention.", ranks)
        _columns(plan, f"{path}up.", layer.up)
        plan[f"{path}down.weight"] = "rows"
    elif isinstance(layer, (Embed, Head)):
        plan[layer.weight.shared_name or f"{path}weight"] = "vocabulary"


def _names(linear: nn.Linear, path: str) -> list[str]:
    return [f"{path}weight"] + ([f"{path}bias"] if linear.bias is not None else [])


def chosen(model: nn.Sequential, ranks: int, patterns: Plan | None) -> dict[str, str]:
    """``plan_for``, but for the parameters that match a pattern: the first that does decides.

    Raises ValueError for a pattern without a parameter, and for an unknown kind of cut.
    """
    plan = plan_for(model, ranks)
    for pattern, kind in reversed(list((patterns or {}).items())):
        found = [name for name in plan if fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(f"plan: no parameter is named {pattern!r}: there are {list(plan)}")
        if kind not in KINDS:
            raise ValueError(f"plan: {pattern!r} is {kind!r}: choose one of {', '.join(KINDS)}")
        plan |= dict.fromkeys(found, kind)
    return plan


def cuts_of(model: nn.Sequential, plan: Plan, ranks: int) -> dict[str, Cut | None]:
    """The cut of every parameter; None for one that is whole.

    Raises ValueError for what cannot be cut for so many ranks.
    """
    named = model.named_parameters()
    attentions = {
        path: module
        for path, module in model.named_modules().items()
        if isinstance(module, nn.CausalSelfAttention)
    }
    cuts: dict[str, Cut | None] = {}
    for name, kind in plan.items():
        shape = named[name].declared
        if kind == "whole":
            cuts[name] = None
        elif kind == "columns":
            cuts[name] = even(kind, len(shape) - 1, shape[-1], ranks)
        elif kind in ("rows", "vocabulary"):
            owner = attentions.get(name.removesuffix(".out.weight"))
            if owner is not None:  # the features of this rank's heads, which come first
                heads = _heads(name, owner, owner.qkv.weight.declared[1], 0, ranks)
                cuts[name] = Cut(kind, 0, tuple((ranges[0],) for ranges in heads.ranges))
            else:
                cuts[name] = even(kind, 0, shape[0], ranks)
        else:
            path = name.rpartition(".qkv.")[0] if ".qkv." in name else ""
            if path not in attentions:
                raise ValueError(f"plan: {name} is not the product of an attention's heads")
            cuts[name] = _heads(name, attentions[path], shape[-1], len(shape) - 1, ranks)
        cut = cuts[name]
        if cut is not None and not all(cut.length(rank) for rank in range(ranks)):
            raise ValueError(
                f"{name} {shape} cannot be cut by {kind} for {ranks} ranks: some would have "
                'nothing. Use fewer ranks on the tensor axis, or keep it "whole" in the plan'
            )
    return cuts


def _heads(name: str, attention: nn.CausalSelfAttention, packed: int, axis: int, ranks: int) -> Cut:
    heads, groups = attention.heads, attention.groups
    d = attention.width // heads
    sharers = ranks // groups
    if groups < ranks and (ranks % groups or heads % ranks or d % sharers):
        raise ValueError(
            f"{name}: {heads} heads of {d} features with {groups} heads of keys cannot be cut for "
            f"{ranks} ranks: with fewer heads of keys than ranks, these must divide the ranks, the "
            "ranks the heads, and the ranks of one such head its features"
        )
    return by_heads(axis, packed, heads, groups, ranks)


def show(model: nn.Sequential, ranks: int, plan: Plan | None = None) -> str:
    """The plan as a table."""
    decided = chosen(model, ranks, plan)
    cuts = cuts_of(model, decided, ranks)
    rows = [("parameter", "whole", "cut", "on each rank")]
    for name, parameter in model.named_parameters().items():
        cut, whole = cuts[name], parameter.declared
        shapes = [whole if cut is None else cut.shape(whole, rank) for rank in range(ranks)]
        same = len(set(shapes)) == 1
        rows.append(
            (
                name,
                str(whole),
                decided[name],
                str(shapes[0]) if same else " ".join(map(str, shapes)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{a:{widths[0]}}  {b:{widths[1]}}  {c:{max(8, widths[2])}}  {d}" for a, b, c, d in rows
    )
