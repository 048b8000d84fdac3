"""Measure the bytes that the tape saves for the backward.

    with measure_saved(exclude=[model.flat.data_and_loss]) as meter:
        model(x).sum().backward()
    meter.peak  # bytes of activations

An op saves for its backward the arrays that its closure refers to, so the closures are searched for
arrays. ``Module.cost`` predicts the same number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minidist.engine.array import Array
from minidist.engine.mode import current_mode, set_mode
from minidist.engine.versions import arrays_in, owner_of


class Meter:
    """Bytes of the arrays that the tape saves for the backward: now, and the peak.

    Measured, not estimated: every distinct array that a closure on the tape refers to is counted
    (a view counts as the array that owns its memory), except the arrays in ``exclude``, such as
    the parameters.
    """

    def __init__(self, exclude: Sequence[Array] = ()) -> None:
        self.bytes = 0
        self.peak = 0
        self._exclude = {id(array) for array in exclude}
        self._saved: dict[Any, list[tuple[int, Array]]] = {}  # by holder
        self._users: dict[int, int] = {}

    def hold(self, holder: Any, value: Any) -> None:
        """Count the arrays in ``value`` (a closure, a tensor, an array) until ``release``."""
        arrays = [array for array in arrays_in(value) if array.ndim]  # a number is no memory
        owners = {id(owner): owner for owner in map(owner_of, arrays)}
        self._saved[holder] = [pair for pair in owners.items() if pair[0] not in self._exclude]
        for key, owner in self._saved[holder]:
            users = self._users.get(key, 0)
            self._users[key] = users + 1
            if users == 0:
                self.bytes += owner.nbytes
        self.peak = max(self.peak, self.bytes)

    def release(self, holder: Any) -> None:
        """Stop counting the arrays of ``holder``."""
        for key, owner in self._saved.pop(holder, ()):
            self._users[key] -= 1
            if self._users[key] == 0:
                del self._users[key]
                self.bytes -= owner.nbytes


@contextmanager
def saved_for_backward(array: Array) -> Iterator[None]:
    """Count ``array`` as saved for a backward, although no op has saved it yet."""
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
    """Measure the bytes that ops inside the ``with`` block save: yields a ``Meter``."""
    meter = Meter(exclude)
    with set_mode(meter=meter):
        yield meter
