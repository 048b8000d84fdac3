"""Parameters that several blocks share, such as GPT's embedding table.

In a pipeline two blocks that share a parameter may lie on two ranks. Each rank then computes the
gradient of its own use, and the two are added at the end. To give the same bits, serial training
must add in the same order: ``separate`` gives each use a separate gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

from minidist.engine.array import module_of
from minidist.nn.module import Module, Parameter
from minidist.parallel.blocks import blocks_of


def separate(model: Module) -> list[tuple[Parameter, Parameter]]:
    """Give each later use of a shared parameter a separate gradient; returns (first, later) pairs.

    ``later`` is a new parameter in the layer of that use; its values are in the same memory. A
    backward then leaves two gradients, which the caller adds at the end. With one microbatch this
    changes no bit. A whole layer that several blocks share stays one layer with one gradient.
    """
    pairs: list[tuple[Parameter, Parameter]] = []
    for module, attribute, value in later_uses(model):
        later = Parameter(value.declared, value.initialiser, value.name)
        later.name = value.name
        later.attach(value.data, module_of(value.grad).zeros_like(value.grad))
        vars(module)[attribute] = later  # an initialised Module refuses an ordinary assignment
        pairs.append((value, later))
    return pairs


def separate_count(model: Module) -> int:
    """Elements of the extra gradients that ``separate`` makes; ``model`` may be only declared."""
    return sum(parameter.size for _, _, parameter in later_uses(model))


def later_uses(model: Module) -> list[tuple[Module, str, Parameter]]:
    """(layer, attribute, parameter) of each use of a parameter that an earlier block uses too."""
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
    """The parameters that several parts share: from the name to the numbers of these parts."""
    holders: dict[str, list[int]] = {}
    for index, part in enumerate(parts):
        for name in part.trained():
            holders.setdefault(name, []).append(index)
    return {name: where for name, where in holders.items() if len(where) > 1}


def shared_by_blocks(model: Module) -> list[str]:
    """The names of the parameters that several blocks of a declared model share."""
    uses: dict[object, int] = {}
    for block in blocks_of(model).values():
        for parameter in block.trained().values():
            uses[identity(parameter)] = uses.get(identity(parameter), 0) + 1
    return [name for name, p in model.trained().items() if uses[identity(p)] > 1]


def identity(parameter: Parameter) -> object:
    """A key that is the same for all uses of a parameter, also after ``separate``."""
    return parameter.shared_name or parameter.name or id(parameter)
