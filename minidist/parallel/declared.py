"""Bytes that replicas of a declared model hold between steps: parameters, gradients, optimizer.

    held(Zero1, gpt(50257, 1024, 3072, 65, 24), ranks=64, bytes_of=MIXED)

Nothing is allocated, so the model may be of any size. ``MIXED`` has the bytes of a parameter in
mixed precision as ZeRO's paper counts them (arXiv 1910.02054, section 3.1): float16 parameters and
gradients; for the optimizer a float32 copy of the parameter and Adam's two averages in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from minidist.nn.module import Module
from minidist.optim.adam import Adam
from minidist.parallel.data_parallel.all_reduce import AllReduce
from minidist.parallel.data_parallel.data_parallel import DataParallel
from minidist.parallel.gradient_sync import GradientSync, Replicas
from minidist.parallel.method import Method
from minidist.parallel.model_costs import parameter_count
from minidist.parallel.zero.stage1 import ReduceScatter, Zero1
from minidist.parallel.zero.stage2 import ReduceScatterSlots, Zero2
from minidist.parallel.zero.stage3 import Zero3

# By method: the part that has the memory formula.
PARTS: dict[type[Method], type[GradientSync]] = {
    DataParallel: lambda: AllReduce("ring"),  # type: ignore[dict-item]
    Zero1: ReduceScatter,
    Zero2: ReduceScatterSlots,
    Zero3: ReduceScatterSlots,
}


@dataclass(frozen=True)
class BytesOf:
    """Bytes of one parameter, of its gradient, and of the optimizer's state for it."""

    parameters: int = 4
    gradients: int = 4
    optimizer: int = 8


MIXED = BytesOf(parameters=2, gradients=2, optimizer=2 * 4 + 4)


def held(
    method: type[Method], model: Module, ranks: int, bytes_of: BytesOf | None = None
) -> dict[str, list[int]]:
    """Bytes by kind and rank; the kinds are "parameters", "gradients", "optimizer" and "slots".

    ZeRO's stages 2 and 3 need "slots" besides the shards: memory for two whole blocks, of gradients
    and (stage 3) of parameters. Their size depends on the largest block, not on the number of
    ranks. Raises ValueError for a method that is not ``DataParallel`` or a stage of ZeRO.
    """
    if method not in PARTS:
        known = ", ".join(kind.__name__ for kind in PARTS)
        raise ValueError(f"held: {method.__name__} is not one of {known}")
    e, optimizer = bytes_of or BytesOf(), Adam()
    # With one byte an element, the formulas count elements.
    found = PARTS[method]().memory(Replicas(model, ranks, 1, optimizer))
    owned = [count // len(optimizer.slots) for count in found["optimizer"]]
    whole = [parameter_count(model)] * ranks
    sharded = method in (Zero2, Zero3)
    slots = [g - own if sharded else 0 for g, own in zip(found["gradients"], owned, strict=True)]
    parameters = owned if method is Zero3 else whole
    gradients = owned if sharded else whole
    each = e.gradients + (e.parameters if method is Zero3 else 0)
    return {
        "parameters": [count * e.parameters for count in parameters],
        "gradients": [count * e.gradients for count in gradients],
        "optimizer": [count * e.optimizer for count in owned],
        "slots": [count * each for count in slots],
    }
