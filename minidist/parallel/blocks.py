"""Blocks: the parts of a model that compute one after the other, and parameters with several homes.

A ``Sequential`` is a list of blocks. A model with a ``forward`` of its own is one block for the
methods: nobody but it knows in which order its parts compute. Data parallelism, servers, averaging
and ZeRO take either; a pipeline has to cut, and takes a ``Sequential`` alone.
"""

from __future__ import annotations

from minidist.nn.layers import Sequential
from minidist.nn.module import LayerCost, Module, Parameter, Shape


def is_list_of_blocks(model: Module) -> bool:
    """Whether ``model`` does nothing but compute its blocks in order."""
    return isinstance(model, Sequential) and type(model).forward is Sequential.forward


def blocks_of(model: Module) -> dict[str, Module]:
    """The blocks by the prefix of their parameters' names, such as ``"0."``; or the model alone."""
    if not is_list_of_blocks(model):
        return {"": model}
    assert isinstance(model, Sequential)
    return {f"{name}.": block for name, block in model.blocks.items()}


def one_block(model: Module, number: int) -> Module:
    """A block as a model of its own, whose parameters keep their names."""
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
    """Give every parameter that has several homes in a declared model one name in all of them.

    A layer that is used twice, or ``b.weight = a.weight``, is one parameter, and its name the first
    of its paths. A stage or a block that is built alone would know another path, and so draw other
    values: ``shared_name`` tells it.
    """
    homes: dict[int, int] = {}
    _count_homes(model, homes)
    for name, parameter in model.named_parameters().items():
        if homes[id(parameter)] > 1:
            parameter.shared_name = name


# A function inside that calls itself would be a circle that keeps the parameters in memory.
def _count_homes(module: Module, homes: dict[int, int]) -> None:
    for _, child in module.children():
        if isinstance(child, Parameter):
            homes[id(child)] = homes.get(id(child), 0) + 1
        else:
            _count_homes(child, homes)
