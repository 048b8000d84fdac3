"""Dropout: zero each element with probability ``rate``, and scale the others up to compensate.

Hinton et al., arXiv 1207.0580. Which elements fall out is keyed by (seed, name, step) and by each
sample's position in the global batch, never by rank or by the order of calls: see
``minidist.engine.draws``. So data-parallel ranks, microbatches and a recomputation in backward all
see the mask that serial training sees. The draws are made on the host on every device.
"""

from __future__ import annotations

from minidist.engine.array import Array
from minidist.engine.seeds import uniform_rows
from minidist.engine.tensor import Tensor, as_tensor


def dropout(
    x: Tensor, rate: float, name: str, part: tuple[slice, ...] = (), whole: tuple[int, ...] = ()
) -> Tensor:
    """x · mask / (1 - rate), where the mask is 0 with probability ``rate``, else 1.

    The first axis of x holds samples. ``name`` must differ between the dropouts of a model. A
    rank that holds only part of each sample, as in tensor parallelism, says which: ``part`` are
    slices of the axes after the first, ``whole`` the full lengths of those axes.
    """
    x = as_tensor(x)
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate {rate} is not in [0, 1)")
    if rate == 0:
        return x
    row = whole or x.shape[1:]
    width = 1
    for length in row:
        width *= length
    drawn = uniform_rows(name, x.shape[0], width).reshape(x.shape[0], *row)
    keep = drawn[(slice(None), *part)] >= int(rate * 2**32)
    if keep.shape != x.shape:
        raise ValueError(f"dropout: part {part} of {whole} is {keep.shape}, the input {x.shape}")
    mask = x.xp.asarray(keep)  # one byte an element
    scale = 1 / (1 - rate)

    def backward(grad: Array) -> tuple[Array]:
        return (grad * mask * scale,)

    return Tensor.of(x.data * mask * scale, (x,), backward)
