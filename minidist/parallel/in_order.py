"""Sending gradients while the backward runs, in one order on all ranks.

A backward completes the gradients of the last layers first. They are sent in groups (buckets, or
ZeRO's units), on the communication stream. All ranks must send the same groups in the same order,
even if one of them does not use some parameter at all.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from minidist.nn.module import Parameter
from minidist.parallel.gradient_sync import GradientSync


class InOrder:
    """Groups of gradients that are sent in a fixed order, each when it is complete.

    A complete group still waits for the groups before it. At the end, call ``ready`` with all
    names: it returns the groups that are left.
    """

    def __init__(self, groups: Collection[Collection[str]]) -> None:
        self.groups = groups
        self.begin()

    def begin(self) -> None:
        self.missing = [set(group) for group in self.groups]
        self.sent = 0

    def ready(self, names: Collection[str]) -> list[int]:
        """Mark these gradients as complete; the numbers of the groups to send now, in order."""
        for missing in self.missing[self.sent :]:
            missing.difference_update(names)
        first = self.sent
        while self.sent < len(self.missing) and not self.missing[self.sent]:
            self.sent += 1
        return list(range(first, self.sent))


class SentInOrder(GradientSync):
    """Base of the parts that send groups of gradients while the last backward of a step runs.

    A subclass calls ``watch`` once its model has arrays, and defines ``send``.
    """

    def watch(self, groups: Collection[Collection[str]]) -> None:
        """Send these groups, in this order, each when its parameters' gradients are complete."""
        self.order = InOrder(groups)
        self.last: set[str] = set()  # parameters whose last backward is running
        for name, parameter in self.model.trained().items():
            parameter.on_ready.append(partial(self.parameter_ready, name))

    def begin(self, step: int) -> None:
        super().begin(step)
        self.order.begin()
        self.last.clear()

    def last_backward(self, loss: float = 0.0, part: slice | None = None) -> None:
        super().last_backward(loss, part)
        slices = self.model.flat.slices
        self.last.update(slices if part is None else names_in(slices, part))
        self.last -= self.apart | self.late

    def parameter_ready(self, name: str, parameter: Parameter) -> None:
        """A backward has finished this parameter's gradient."""
        if name in self.last:
            self.launch([name])

    def launch(self, ready: Collection[str]) -> None:
        """These parameters' gradients are complete: send every group that is complete now."""
        for index in self.order.ready(ready):
            self.send(index)

    def send(self, index: int) -> None:
        """Start to sum group number ``index`` on the communication stream."""
        raise TypeError(f"{type(self).__name__} does not define send()")

    def finish(self) -> float:
        self.launch(list(self.model.flat.slices))  # also those that no backward has reached
        return super().finish()


def names_in(slices: dict[str, slice], part: slice) -> list[str]:
    """The parameters that lie in ``part`` of the flat array."""
    return [name for name, where in slices.items() if part.start <= where.start < part.stop]
