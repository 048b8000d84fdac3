"""From a declared serial model and a plan to what one rank computes.

Each parameter that is cut is declared anew, as this rank's part; each layer that holds one becomes
its parallel form. Names stay, so the values drawn and the state saved are those of serial training.
The serial model is copied, not changed.

A plan that would compute something else is refused here, with the layer's name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from minidist import nn
from minidist.models.gpt import Block, Embed, Head
from minidist.nn.module import Module
from minidist.parallel.tensor.axis import Axis
from minidist.parallel.tensor.cut import Cut, PartOf
from minidist.parallel.tensor.ends import CutEmbed, CutHead, VocabularyCrossEntropy
from minidist.parallel.tensor.layers import ColumnParallel, CutDropout, HeadParallel, RowParallel
from minidist.parallel.tensor.plan import ELEMENTWISE

Cuts = Mapping[str, Cut | None]


def convert(
    model: nn.Sequential, loss: Module, cuts: Cuts, axis: Axis
) -> tuple[nn.Sequential, Module]:
    """This rank's model and loss, declared. Raises ValueError for what cannot be cut like this."""
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
    output = _convert_row(model, cuts, axis, "")
    _check_all_cut(model, cuts)
    if output is None:
        return model, loss
    if type(loss) is not nn.CrossEntropy:
        raise ValueError(
            f"the plan leaves the model's output cut, and {type(loss).__name__} needs all of it: "
            "keep the last layer whole in the plan, or take CrossEntropy"
        )
    return model, VocabularyCrossEntropy(loss, axis, output)


def _convert_row(row: nn.Sequential, cuts: Cuts, axis: Axis, prefix: str) -> Cut | None:
    """Convert layers one after the other; how their output is cut along its last axis."""
    flow: Cut | None = None
    for name, layer in row.blocks.items():
        path = f"{prefix}{name}."
        if flow is not None and isinstance(layer, ELEMENTWISE):
            if isinstance(layer, nn.Dropout):
                (here,) = flow.ranges[axis.rank]
                row.blocks[name] = CutDropout(layer, axis, (*here, flow.ranges[-1][-1][1]))
            continue
        kind = _kind(cuts, f"{path}weight") if isinstance(layer, nn.Linear) else "whole"
        if (kind == "rows") != (flow is not None):
            reason = (
                "gets whole rows of its input's features, and needs a part"
                if flow is None
                else "gets a part of its input's features, and needs all"
            )
            raise ValueError(
                f"plan: layer {path.removesuffix('.')} {reason}: columns and rows come in pairs, "
                "with layers between them that work element by element"
            )
        row.blocks[name], flow = _convert_layer(layer, cuts, axis, path)
    return flow


def _convert_layer(layer: Module, cuts: Cuts, axis: Axis, path: str) -> tuple[Module, Cut | None]:
    """A layer's parallel form, and how its output is cut."""
    if isinstance(layer, nn.Linear):
        kind = _kind(cuts, f"{path}weight")
        if layer.bias is not None and (kind == "columns") != (
            _kind(cuts, f"{path}bias") == "columns"
        ):
            raise ValueError(f"plan: {path}bias goes with the columns of {path}weight")
        if kind == "columns":
            return ColumnParallel(layer, axis), cuts[f"{path}weight"]
        return (RowParallel(layer, axis) if kind == "rows" else layer), None
    if isinstance(layer, nn.Residual):
        if _convert_row(layer.inner, cuts, axis, f"{path}inner.") is not None:
            raise ValueError(f"plan: the branch {path}inner ends in a part, and is added to all")
        return layer, None
    if isinstance(layer, nn.CausalSelfAttention):
        return _convert_attention(layer, cuts, axis, path), None
    if isinstance(layer, Block):
        layer.attention = _convert_attention(layer.attention, cuts, axis, f"{path}attention.")
        pair = nn.Sequential(layer.up, layer.gelu, layer.down)
        pair.blocks = nn.layers.Blocks(
            zip(("up", "gelu", "down"), pair.blocks.values(), strict=True)
        )
        if _convert_row(pair, cuts, axis, path) is not None:
            raise ValueError(f"plan: the branch {path}down ends in a part, and is added to all")
        layer.up, layer.down = pair.blocks["up"], pair.blocks["down"]  # type: ignore[assignment]
        if axis.sequence:
            layer.dropout1 = CutDropout(layer.dropout1, axis)
            layer.dropout2 = CutDropout(layer.dropout2, axis)
        return layer, None
    if isinstance(layer, (Embed, Head)):
        cut = cuts[layer.weight.shared_name or f"{path}weight"]
        if cut is None:
            return layer, None
        if isinstance(layer, Embed):
            return CutEmbed(layer, axis, cut), None
        return CutHead(layer, axis), cut
    return layer, None


def _convert_attention(
    layer: nn.CausalSelfAttention, cuts: Cuts, axis: Axis, path: str
) -> nn.CausalSelfAttention:
    """By heads, or whole: both products must agree."""
    kinds = [_kind(cuts, f"{path}qkv.weight"), _kind(cuts, f"{path}out.weight")]
    if layer.qkv.bias is not None:
        kinds.insert(1, _kind(cuts, f"{path}qkv.bias"))
    if all(kind == "whole" for kind in kinds):
        return layer
    if kinds[:-1] != ["heads"] * (len(kinds) - 1) or kinds[-1] != "rows":
        raise ValueError(f"plan: {path}* is cut by {kinds}: qkv goes by heads and out.weight rows")
    return HeadParallel(layer, axis)


def _check_all_cut(model: nn.Sequential, cuts: Cuts) -> None:
    """Raise ValueError for a cut parameter whose layer has no form for it."""
    known: set[int] = set()
    for module in model.named_modules().values():
        if isinstance(module, (ColumnParallel, RowParallel, CutEmbed, CutHead)):
            known.add(id(module.weight))
        if isinstance(module, ColumnParallel):
            known.add(id(module.bias))
    for name, parameter in model.named_parameters().items():
        if cuts[name] is not None and id(parameter) not in known:
            raise ValueError(
                f"plan: {name} is cut by {_kind(cuts, name)}, and its layer needs all of it"
            )


def _check_sequence(model: nn.Sequential, cuts: Cuts) -> None:
    """Raise ValueError unless every block of the model can work on a part of the sequence."""
    for name, block in model.blocks.items():
        if not isinstance(block, (Block, Embed, Head)):
            raise ValueError(
                f"sequence parallelism knows the blocks of a GPT, and block {name} is a "
                f"{type(block).__name__}: it may need positions that are on other ranks"
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


def _kind(cuts: Cuts, name: str) -> str:
    cut = cuts[name]
    return "whole" if cut is None else cut.kind


def summed_over_sequence(model: nn.Sequential, cuts: Cuts) -> list[str]:
    """Whole parameters that each rank uses for its part of the sequence alone: all of them.

    Their gradients are sums over the ranks.
    """
    return [name for name in model.named_parameters() if cuts[name] is None]
