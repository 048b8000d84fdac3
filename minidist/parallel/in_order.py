"""Sending gradients while the backward runs: in which order, and when each may go.

A backward completes the gradients of the last layers first. They are sent in groups (buckets, or
ZeRO's units), on the communication stream. All ranks must send the same groups in the same order,
even if a rank does not use some parameter at all.
"""

from __future__ import annotations

from collections.abc import Collection


class InOrder:
    """Groups of gradients that are sent in a fixed order, each when it is complete.

    A group waits for those before it. At the end ``ready`` of all names sends the rest.
    """

    def __init__(self, groups: Collection[Collection[str]]) -> None:
        self.groups = groups
        self.begin()

    def begin(self) -> None:
        self.missing = [set(group) for group in self.groups]
        self.sent = 0

    def ready(self, names: Collection[str]) -> list[int]:
        """These gradients are complete: the groups that go now, by number."""
        for missing in self.missing[self.sent :]:
            missing.difference_update(names)
        first = self.sent
        while self.sent < len(self.missing) and not self.missing[self.sent]:
            self.sent += 1
        return list(range(first, self.sent))


def names_in(slices: dict[str, slice], part: slice) -> list[str]:
    """The parameters that lie in ``part`` of the flat array."""
    return [name for name, where in slices.items() if part.start <= where.start < part.stop]
