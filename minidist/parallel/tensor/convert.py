"""Convert a declared serial model and a plan into the model of one rank.

A parameter that is cut is declared again with the shape of this rank's part; its layer is replaced
by the parallel form. Names do not change, so initial values and saved states are those of serial
training. The serial model is copied, not changed.

A plan whose model would compute another function is refused, with the layer's name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from minidist import nn
from minidist.models.gpt import Block, Embed, Head
from minidist.nn.loss import Loss
from minidist.nn.module import Module, Parameter
from minidist.parallel.blocks import is_list_of_blocks
from minidist.parallel.tensor.axis import Axis
from minidist.parallel.tensor.cut import Cut, PartOf
from minidist.parallel.tensor.ends import CutEmbed, CutHead, VocabularyCrossEntropy
from minidist.parallel.tensor.layers import ColumnParallel, CutDropout, HeadParallel, RowParallel
from minidist.parallel.tensor.plan import ELEMENTWISE, plain

Cuts = Mapping[str, Cut | None]


def convert(model: nn.Sequential, loss: Loss, cuts: Cuts, axis: Axis) -> tuple[nn.Sequential, Loss]:
    """This rank's model and loss, declared. Raises ValueError for layers that cannot be cut so."""
    serial = model.named_parameters()
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters().items():
        if (cut := cuts[name]) is not None:
            whole = serial[name].declared
            parameter.redeclare(
                cut.shape(whole, axis.rank), PartOf(parameter.initialiser, whole, cut, axis.rank)
            )
    if axis.sequence:
        _check_sequence(model, cuts)
    if axis.size == 1 or not is_list_of_blocks(model):
        return model, loss
    by_parameter = {id(p): cuts[name] for name, p in model.named_parameters().items()}
    names = {id(p): name for name, p in model.named_parameters().items()}
    output = _Converter(by_parameter, names, axis).row(model)
    _check_all_cut(model, cuts)
    if output is None:
        return model, loss
    if type(loss) is not nn.CrossEntropy:
        raise ValueError(
            f"the plan leaves the model's output cut, and {type(loss).__name__} needs all of it: "
            "keep the last layer whole in the plan, or use CrossEntropy"
        )
    return model, VocabularyCrossEntropy(loss, axis, output)


@dataclass(frozen=True)
class _Converter:
    """Replaces layers by their parallel forms, in place."""

    cuts: Mapping[int, Cut | None]  # by the id of a parameter
    names: Mapping[int, str]
    axis: Axis

    def kind(self, parameter: Parameter) -> str:
        cut = self.cuts[id(parameter)]
        return "whole" if cut is None else cut.kind

    def name(self, parameter: Parameter) -> str:
        return self.names[id(parameter)]

    def row(self, row: nn.Sequential) -> Cut | None:
        """Convert layers in sequence; returns how the last axis of their output is cut."""
        output: Cut | None = None  # how the last axis of the layers' output so far is cut
        for name, layer in row.blocks.items():
            if output is not None and isinstance(layer, ELEMENTWISE):
                if isinstance(layer, nn.Dropout):
                    (here,) = output.ranges[self.axis.rank]
                    end = output.ranges[-1][-1][1]
                    row.blocks[name] = CutDropout(layer, self.axis, (*here, end))
                continue
            rows = isinstance(layer, nn.Linear) and self.kind(layer.weight) == "rows"
            if rows != (output is not None):
                who = self.name(layer.weight) if isinstance(layer, nn.Linear) else f"layer {name}"
                reason = (
                    "takes a part of its input's features, and gets all"
                    if output is None
                    else "gets a part of its input's features, and needs all"
                )
                raise ValueError(
                    f"plan: {who} {reason}: columns and rows come in pairs, with layers between "
                    "them that work element by element"
                )
            row.blocks[name], output = self.layer(layer)
        return output

    def branch(self, row: nn.Sequential) -> None:
        """Convert layers whose output is added to a whole array, so must be whole too."""
        if self.row(row) is not None:
            raise ValueError(
                f"plan: the branch with {next(iter(map(self.name, row.parameters())))} ends in a "
                "part, and is added to all"
            )

    def layer(self, layer: Module) -> tuple[Module, Cut | None]:
        """A layer's parallel form, and how its output is cut."""
        if isinstance(layer, nn.Linear):
            kind = self.kind(layer.weight)
            if layer.bias is not None and (kind == "columns") != (
                self.kind(layer.bias) == "columns"
            ):
                weight, bias = self.name(layer.weight), self.name(layer.bias)
                raise ValueError(f"plan: {bias} goes with the columns of {weight}")
            if kind == "columns":
                return ColumnParallel(layer, self.axis), self.cuts[id(layer.weight)]
            return (RowParallel(layer, self.axis) if kind == "rows" else layer), None
        if isinstance(layer, nn.Residual):
            self.branch(layer.inner)
        elif isinstance(layer, nn.CausalSelfAttention):
            return self.attention(layer), None
        elif isinstance(layer, Block):
            self.block(layer)
        elif isinstance(layer, (Embed, Head)):
            cut = self.cuts[id(layer.weight)]
            if cut is not None and isinstance(layer, Embed):
                return CutEmbed(layer, self.axis, cut), None
            if cut is not None and isinstance(layer, Head):
                return CutHead(layer, self.axis, cut), cut
        return layer, None

    def attention(self, layer: nn.CausalSelfAttention) -> nn.CausalSelfAttention:
        """Attention by heads, or whole: the cuts of its two products must match."""
        if not plain(layer.qkv, layer.out):
            return layer  # whole, or refused by _check_all_cut
        first = [p for p in (layer.qkv.weight, layer.qkv.bias) if p is not None]
        kinds = [*map(self.kind, first), self.kind(layer.out.weight)]
        if all(kind == "whole" for kind in kinds):
            return layer
        if kinds != ["heads"] * len(first) + ["rows"]:
            raise ValueError(
                f"plan: the attention with {self.name(layer.qkv.weight)} is cut by {kinds}: qkv "
                "goes by heads, and out.weight by rows"
            )
        of_out = self.cuts[id(layer.out.weight)]
        assert of_out is not None
        features = of_out.ranges[-1][-1][1]  # of all heads; after pruning less than the width
        return HeadParallel(layer, self.axis, features // layer.heads)

    def block(self, layer: Block) -> None:
        layer.attention = self.attention(layer.attention)
        pair = nn.Sequential(layer.up, layer.gelu, layer.down)
        self.branch(pair)
        layer.up, layer.gelu, layer.down = pair.blocks.values()  # type: ignore[assignment]
        if self.axis.sequence:
            layer.dropout1 = CutDropout(layer.dropout1, self.axis)
            layer.dropout2 = CutDropout(layer.dropout2, self.axis)


def _check_all_cut(model: nn.Sequential, cuts: Cuts) -> None:
    """Raise ValueError for a cut parameter whose layer has no parallel form."""
    known: set[int] = set()
    for module in model.named_modules().values():
        if isinstance(module, (ColumnParallel, RowParallel, CutEmbed, CutHead)):
            known.add(id(module.weight))
        if isinstance(module, ColumnParallel):
            known.add(id(module.bias))
    for name, parameter in model.named_parameters().items():
        if (cut := cuts[name]) is not None and id(parameter) not in known:
            raise ValueError(f"plan: {name} is cut by {cut.kind}, and its layer needs all of it")


def _check_sequence(model: nn.Sequential, cuts: Cuts) -> None:
    """Raise ValueError unless every block can compute from a part of the sequence."""
    if frozen := list(model.frozen()):
        raise ValueError(
            "sequence parallelism gathers inputs for the gradients of all weights, and "
            f"{frozen[0]} is frozen: leave sequence out, or train all"
        )
    for name, block in model.blocks.items():
        if not isinstance(block, (Block, Embed, Head)):
            raise ValueError(
                f"sequence parallelism knows the blocks of a GPT, and block {name} is a "
                f"{type(block).__name__}: it may need positions that are on other ranks"
            )
        if isinstance(block, Block):
            for layer in (block.attention.qkv, block.attention.out, block.up, block.down):
                if not plain(layer):
                    raise ValueError(
                        f"sequence parallelism cuts the linear layers of block {name}, and one is "
                        f"a {type(layer).__name__}: it would see this rank's positions alone"
                    )
    for name, cut in cuts.items():
        last = name.rpartition(".")[0].rpartition(".")[2]
        if cut is None and name.endswith("weight") and last in ("qkv", "out", "up", "down"):
            raise ValueError(
                f"sequence parallelism needs {name} cut: a layer that is whole would see this "
                "rank's part of the sequence alone"
            )
    if cuts.get("embedding.weight", True) is None:
        raise ValueError(
            "sequence parallelism needs the table embedding.weight cut by vocabulary: the head "
            "gathers the sequence before its columns"
        )


def summed_over_sequence(model: nn.Sequential, cuts: Cuts) -> list[str]:
    """Names of parameters whose gradients are sums over the ranks, if the sequence is cut.

    These are all parameters that are not cut: each rank uses them for its positions only.
    """
    return [name for name in model.named_parameters() if cuts[name] is None]
