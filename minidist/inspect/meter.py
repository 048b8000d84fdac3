"""How many bytes the tape saves for backward: measured on the tape itself.

    with measure_saved(exclude=[model.flat.data_and_loss]) as meter:
        model(x).sum().backward()
    meter.peak  # bytes of activations

What an op keeps for its backward is what its closure keeps alive, so that is where we look. The
prediction that stands beside it is ``Module.cost``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minidist.engine.array import Array
from minidist.engine.mode import current_mode, set_mode
from minidist.engine.tape import Into
from minidist.engine.tensor import Tensor


class Meter:
    """Bytes of the arrays that the tape saves for backward: now, and at the highest.

    Measured, not estimated: it looks into the closures on the tape and counts every distinct
    array that they keep alive (a view counts as the array it views), except the arrays in
    ``exclude``, which are the parameters.
    """

    def __init__(self, exclude: Sequence[Array] = ()) -> None:
        self.bytes = 0
        self.peak = 0
        self._exclude = {id(array) for array in exclude}
        self._holds: dict[Any, list[tuple[int, Array]]] = {}
        self._users: dict[int, int] = {}

    def hold(self, holder: Any, holds: Any) -> None:
        """Count what ``holds`` (a closure, a tensor, an array) keeps alive, until ``release``."""
        held = {id(owner): owner for owner in map(owner_of, arrays_in(holds))}
        self._holds[holder] = [pair for pair in held.items() if pair[0] not in self._exclude]
        for key, owner in self._holds[holder]:
            users = self._users.get(key, 0)
            self._users[key] = users + 1
            if users == 0:
                self.bytes += owner.nbytes
        self.peak = max(self.peak, self.bytes)

    def release(self, holder: Any) -> None:
        """``holder`` keeps nothing alive any more."""
        for key, owner in self._holds.pop(holder, ()):
            self._users[key] -= 1
            if self._users[key] == 0:
                del self._users[key]
                self.bytes -= owner.nbytes


def owner_of(array: Array) -> Array:
    """The array whose memory ``array`` is a view of: itself if it is of none."""
    while getattr(array, "base", None) is not None and hasattr(array.base, "nbytes"):
        array = array.base
    return array


def arrays_in(function: Any) -> Iterator[Array]:
    """Every array that a closure keeps alive, also through tensors, tuples and inner functions."""
    stack = [function]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            yield value.data
        elif isinstance(value, Into):
            stack.append(value.write)
        elif isinstance(value, type):
            continue
        elif getattr(value, "ndim", 0) and hasattr(value, "nbytes"):
            yield value
        elif isinstance(value, (tuple, list)):
            stack.extend(value)
        elif getattr(value, "__closure__", None):
            stack.extend(cell.cell_contents for cell in value.__closure__)


@contextmanager
def saved_for_backward(array: Array) -> Iterator[None]:
    """Let a ``Meter`` know that ``array`` is kept for a backward, though no op keeps it yet."""
    meter, holder = current_mode().meter, object()
    if meter is not None:
        meter.hold(holder, array)
    try:
        yield
    finally:
        if meter is not None:
            meter.release(holder)


@contextmanager
def measure_saved(exclude: Sequence[Array] = ()) -> Iterator[Meter]:
    """Measure the bytes that ops inside save for their backward: yields a ``Meter``."""
    meter = Meter(exclude)
    with set_mode(meter=meter):
        yield meter
