"""Blocks: the parts of a model that compute one after the other; and parameters used in several.

A ``Sequential`` is a list of blocks. A model with a ``forward`` of its own counts as one block,
because a method cannot know in which order its layers compute. Data parallelism, servers, averaging
and ZeRO accept both. A pipeline must cut the model, so it accepts only a ``Sequential``.
"""

from __future__ import annotations

from minidist.nn.layers import Sequential
from minidist.nn.module import LayerCost, Module, Parameter, Shape


def is_list_of_blocks(model: Module) -> bool:
    """Whether ``model`` does nothing but compute its blocks in order."""
    return isinstance(model, Sequential) and type(model).forward is Sequential.forward


def blocks_of(model: Module) -> dict[str, Module]:
    """The blocks, keyed by the prefix of their parameters' names (``"0."``); or {"": model}."""
    if not is_list_of_blocks(model):
        return {"": model}
    assert isinstance(model, Sequential)
    return {f"{name}.": block for name, block in model.blocks.items()}


def one_block(model: Module, number: int) -> Module:
    """Block ``number`` as a separate model, whose parameters keep their names."""
    if not is_list_of_blocks(model):
        return model
    assert isinstance(model, Sequential)
    return model[number : number + 1]


def costs_of(model: Module, shape: Shape, itemsize: int = 4) -> list[LayerCost]:
    """The cost of each block, if the first block's input has ``shape``."""
    if is_list_of_blocks(model):
        assert isinstance(model, Sequential)
        return model.costs(shape, itemsize)
    return [model.cost(shape, itemsize)]


def name_shared(model: Module) -> None:
    """Set ``shared_name`` of every parameter that a declared model uses in several places.

    A layer that is used twice, or ``b.weight = a.weight``, is one parameter with several paths. Its
    name is the first of them. A stage that is built alone sees only a later path, and initial
    values are drawn by name: ``shared_name`` gives it the first one.
    """
    uses = use_counts(model)
    for name, parameter in model.named_parameters().items():
        if uses[id(parameter)] > 1:
            parameter.shared_name = name


def use_counts(model: Module) -> dict[int, int]:
    """How many modules have each parameter, by its id; a module used twice counts twice."""
    found: dict[int, int] = {}
    _count_uses(model, found)
    return found


# Not a nested function: one that calls itself is a reference cycle, and would keep the parameters
# in memory until the garbage collector runs.
def _count_uses(module: Module, found: dict[int, int]) -> None:
    for _, child in module.children():
        if isinstance(child, Parameter):
            found[id(child)] = found.get(id(child), 0) + 1
        else:
            _count_uses(child, found)
