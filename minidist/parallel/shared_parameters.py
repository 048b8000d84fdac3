"""Parameters that several blocks share, such as GPT's embedding table.

A pipeline may hold two blocks that share a parameter on two ranks. Each then computes the gradient
of its own use, and the two are added at the end. For serial training to add in the same order, and
so to give the same bits, it must keep the gradients of the uses apart as well: ``separate`` does.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.engine.array import module_of
from minidist.nn.module import Module, Parameter
from minidist.parallel.blocks import blocks_of


def separate(model: Module) -> list[tuple[Parameter, Parameter]]:
    """Give each later use of a shared parameter a separate gradient: (first, later) pairs.

    ``later`` is a parameter with the same values in the same memory, in the layer that uses them.
    One backward through both blocks then leaves two gradients, to be added at the end. With one
    microbatch this changes no bit. A layer that several blocks have in common is one layer with
    one gradient.
    """
    pairs: list[tuple[Parameter, Parameter]] = []
    for module, attribute, value in later_uses(model):
        later = Parameter(value.declared, value.initialiser, value.name)
        later.name = value.name
        later.attach(value.data, module_of(value.grad).zeros_like(value.grad))
        vars(module)[attribute] = later  # Module refuses an assignment now
        pairs.append((value, later))
    return pairs


def separate_count(model: Module) -> int:
    """Elements of the extra gradients that ``separate`` makes, of a declared model too."""
    return sum(parameter.size for _, _, parameter in later_uses(model))


def later_uses(model: Module) -> list[tuple[Module, str, Parameter]]:
    """Where blocks use a parameter that an earlier block uses too: layer, attribute, parameter."""
    seen: set[int | str] = set()
    found: dict[tuple[int, str], tuple[Module, str, Parameter]] = {}
    for block in blocks_of(model).values():
        here: set[int | str] = set()
        for module in block.named_modules().values():
            for attribute, value in vars(module).items():
                if isinstance(value, Parameter) and value.requires_grad:
                    key = value.shared_name or id(value)
                    here.add(key)
                    if key in seen:
                        found.setdefault((id(module), attribute), (module, attribute, value))
        seen |= here
    return list(found.values())


def tied(parts: Sequence[Module]) -> dict[str, list[int]]:
    """Parameters that several parts share, by name: in which parts each is."""
    holders: dict[str, list[int]] = {}
    for index, part in enumerate(parts):
        for name in part.trained():
            holders.setdefault(name, []).append(index)
    return {name: where for name, where in holders.items() if len(where) > 1}


def shared_by_blocks(model: Module) -> list[str]:
    """The parameters that several blocks of a declared model share, by name."""
    uses: dict[object, int] = {}
    for block in blocks_of(model).values():
        for parameter in block.trained().values():
            uses[identity(parameter)] = uses.get(identity(parameter), 0) + 1
    return [name for name, p in model.trained().items() if uses[identity(p)] > 1]


def identity(parameter: Parameter) -> object:
    """What all uses of a parameter have in common, also after ``separate``: the name it has."""
    return parameter.shared_name or parameter.name or id(parameter)
