"""The plan: how each parameter of a serial model is cut over the ranks of the tensor axis.

    >>> from minidist.models import mlp
    >>> print(show(mlp((784, 128, 64, 10)), 2))
    parameter   whole       cut       on each rank
    1.weight    (784, 128)  columns   (784, 64)
    1.bias      (128,)      columns   (64,)
    3.weight    (128, 64)   rows      (64, 64)
    3.bias      (64,)       whole     (64,)
    5.weight    (64, 10)    columns   (64, 5)
    5.bias      (10,)       columns   (5,)

``plan_for`` makes it. In an MLP, layers are cut by columns and by rows alternately, so that two
layers need one sum. If the last layer has no partner, its outputs stay cut, and the loss is
computed from the parts. In a transformer block, attention is cut by heads, and the MLP by columns
and rows; an embedding table is cut by vocabulary. Small parameters that every rank needs (norms,
positions, biases after a sum) are kept whole. Patterns change the plan:
``{"2.attention.*": "whole"}``. Parameters that are cut together must be kept whole together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from minidist import nn
from minidist.models.gpt import Block, Embed, Head
from minidist.nn.module import Module, Parameter
from minidist.parallel.blocks import is_list_of_blocks, use_counts
from minidist.parallel.tensor.cut import Cut, by_heads, even

Plan = Mapping[str, str]  # by name of a parameter (or pattern): a kind of cut
KINDS = ("whole", "columns", "rows", "heads", "vocabulary")

# Elementwise layers: they can be applied to a part of their input.
ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Dropout)


def plan_for(model: nn.Sequential, ranks: int) -> dict[str, str]:
    """The kind of cut of every parameter of a declared model.

    A layer that cannot be cut for so many ranks is kept whole, such as two heads for three ranks.
    So is a layer that is used in several places, because each could need another cut.
    """
    names = {id(p): name for name, p in model.named_parameters().items()}
    plan = dict.fromkeys(names.values(), "whole")
    if is_list_of_blocks(model):
        _Planner(plan, names, use_counts(model), ranks).row(model, ends=True)
    return plan


@dataclass(frozen=True)
class _Planner:
    """Fills a plan, layer by layer."""

    plan: dict[str, str]
    names: dict[int, str]
    uses: dict[int, int]  # how many modules have each parameter
    ranks: int

    def set(self, kind: str, *parameters: Parameter | None) -> None:
        for parameter in parameters:
            if parameter is not None:
                self.plan[self.names[id(parameter)]] = kind

    def used_once(self, layer: Module) -> bool:
        return all(self.uses[id(parameter)] == 1 for parameter in layer.parameters())

    def row(self, row: nn.Sequential, ends: bool) -> None:
        """Plan layers in sequence; ``ends``: whether the output may stay cut."""
        first: nn.Linear | None = None  # a linear layer that has no partner yet
        for layer in row.blocks.values():
            if isinstance(layer, nn.Linear) and self.used_once(layer):
                if first is not None:
                    self.columns(first)
                    self.set("rows", layer.weight)
                    first = None
                elif layer.weight.declared[1] >= self.ranks:
                    first = layer
            elif not isinstance(layer, ELEMENTWISE):
                first = None  # this layer needs its input whole
                self.layer(layer)
        if first is not None and ends:
            self.columns(first)

    def columns(self, linear: nn.Linear) -> None:
        self.set("columns", linear.weight, linear.bias)

    def layer(self, layer: Module) -> None:
        if isinstance(layer, (Embed, Head)):  # both have the table
            if layer.weight.declared[0] >= self.ranks:
                self.set("vocabulary", layer.weight)
        elif not self.used_once(layer):
            return
        elif isinstance(layer, nn.Residual) and is_list_of_blocks(layer.inner):
            self.row(layer.inner, ends=False)
        elif isinstance(layer, nn.CausalSelfAttention):
            if plain(layer.qkv, layer.out) and heads_divide(layer, self.ranks):
                self.set("heads", layer.qkv.weight, layer.qkv.bias)
                self.set("rows", layer.out.weight)
        elif isinstance(layer, Block):
            self.layer(layer.attention)
            if plain(layer.up, layer.down):
                self.columns(layer.up)
                self.set("rows", layer.down.weight)


def plain(*layers: Module) -> bool:
    """Whether all are linear layers: another layer, such as an adapter, may have replaced one."""
    return all(isinstance(layer, nn.Linear) for layer in layers)


def chosen(model: nn.Sequential, ranks: int, patterns: Plan | None) -> dict[str, str]:
    """``plan_for``, changed by ``patterns``; if several match a parameter, the first one is used.

    Raises ValueError for a pattern that matches nothing, and for an unknown kind of cut.
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
    """The cut of every parameter; None for one that is kept whole.

    Raises ValueError for a parameter that cannot be cut for so many ranks.
    """
    if ranks == 1:
        return dict.fromkeys(plan)  # all are whole, and the layers are those of serial training
    named = model.named_parameters()
    attentions: dict[int, nn.CausalSelfAttention] = {}  # by the ids of their parameters
    for module in model.named_modules().values():
        if isinstance(module, nn.CausalSelfAttention) and plain(module.qkv, module.out):
            own = (module.qkv.weight, module.qkv.bias, module.out.weight)
            attentions |= {id(parameter): module for parameter in own if parameter is not None}
    cuts: dict[str, Cut | None] = {}
    for name, kind in plan.items():
        shape = named[name].declared
        if kind == "whole":
            cuts[name] = None
        elif kind == "columns":
            cuts[name] = even(kind, len(shape) - 1, shape[-1], ranks)
        elif kind in ("rows", "vocabulary"):
            owner = attentions.get(id(named[name]))
            if owner is not None:  # ranges[0]: the features of a rank's query heads
                heads = _heads(name, owner, owner.qkv.weight.declared[1], 0, ranks)
                cuts[name] = Cut(kind, 0, tuple((ranges[0],) for ranges in heads.ranges))
            else:
                cuts[name] = even(kind, 0, shape[0], ranks)
        else:
            owner = attentions.get(id(named[name]))
            if owner is None or named[name] is owner.out.weight:
                raise ValueError(f"plan: {name} is not the product of an attention's heads")
            cuts[name] = _heads(name, owner, shape[-1], len(shape) - 1, ranks)
        cut = cuts[name]
        if cut is not None and not all(cut.length(rank) for rank in range(ranks)):
            raise ValueError(
                f"{name} {shape} cannot be cut by {kind} for {ranks} ranks: some would have "
                'nothing. Use fewer ranks on the tensor axis, or keep it "whole" in the plan'
            )
    return cuts


def heads_divide(attention: nn.CausalSelfAttention, ranks: int) -> bool:
    """Whether each rank gets whole query heads, and an equal share of the heads of keys."""
    heads, groups = attention.heads, attention.groups
    features = attention.out.weight.declared[0] // heads
    if groups >= ranks:
        return True
    return ranks % groups == heads % ranks == features % (ranks // groups) == 0


def _heads(name: str, attention: nn.CausalSelfAttention, packed: int, axis: int, ranks: int) -> Cut:
    heads, groups = attention.heads, attention.groups
    if not heads_divide(attention, ranks):
        d = attention.out.weight.declared[0] // heads
        raise ValueError(
            f"{name}: {heads} heads of {d} features with {groups} heads of keys cannot be cut for "
            f"{ranks} ranks: with fewer heads of keys than ranks, the heads of keys must divide "
            "the ranks, the ranks must divide the heads, and the ranks of one head of keys must "
            "divide its features"
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
