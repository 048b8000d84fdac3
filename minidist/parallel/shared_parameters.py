"""Parameters that several blocks share, such as GPT's embedding table.

A pipeline may hold two blocks that share a parameter on two ranks. Each then computes the gradient
of its own use, and the two are added at the end. For serial training to add in the same order, and
so to give the same bits, it must keep the gradients of the uses apart as well: ``separate`` does.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.engine.array import module_of
from minidist.nn.layers import Sequential
from minidist.nn.module import Module, Parameter
from minidist.parallel.model_costs import parameter_count


def separate(model: Sequential) -> list[tuple[Parameter, Parameter]]:
    """Give each later use of a shared parameter a separate gradient: (first, later) pairs.

    ``later`` is a parameter with the same values in the same memory, in the block that uses them.
    One backward through both blocks then leaves two gradients, to be added at the end. With one
    microbatch this changes no bit.
    """
    seen: dict[int, Parameter] = {}
    pairs: list[tuple[Parameter, Parameter]] = []
    for block in model.blocks.values():
        here: dict[int, Parameter] = {}
        for module in block.named_modules().values():
            for attribute, value in list(vars(module).items()):
                if not isinstance(value, Parameter) or not value.requires_grad:
                    continue
                if id(value) not in seen:
                    here[id(value)] = value
                    continue
                later = Parameter(value.declared, value.initialiser, value.name)
                later.attach(value.data, module_of(value.grad).zeros_like(value.grad))
                vars(module)[attribute] = later  # Module refuses an assignment now
                pairs.append((value, later))
        seen |= here
    return pairs


def separate_count(model: Sequential) -> int:
    """Elements of the extra gradients that ``separate`` makes, of a declared model too."""
    apart = sum(parameter_count(block) for block in model.blocks.values())
    return apart - parameter_count(model)


def tied(parts: Sequence[Module]) -> dict[str, list[int]]:
    """Parameters that several parts share, by name: in which parts each is."""
    holders: dict[str, list[int]] = {}
    for index, part in enumerate(parts):
        for name in part.trained():
            holders.setdefault(name, []).append(index)
    return {name: where for name, where in holders.items() if len(where) > 1}


def shared_by_blocks(model: Sequential) -> list[str]:
    """The parameters that several blocks of a declared model share, by name."""
    uses: dict[int, int] = {}
    for block in model.blocks.values():
        for parameter in block.trained().values():
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return [name for name, p in model.trained().items() if uses[id(p)] > 1]
