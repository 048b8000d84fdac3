"""The call of communication that a rank is in, and the words for it when it does not return.

The public calls of ``Comm`` leave a ``Call`` in the rank's trace while they last: a plain tuple,
because it is made for every message. The watchdog of the MPI world reports it; the local world's
``Deadlock`` uses the same words.
"""

from __future__ import annotations

from minidist.engine.array import Array

# (name, start in seconds, array sent, to, array received, source, tag)
Call = tuple[str, float, Array | None, int, Array | None, int, int]


def describe_message(call: str, array: Array, peer: str, rank: int, tag: int) -> str:
    """One side of a message, such as "recv(float64[3], source=ANY, tag=0)"."""
    other = "ANY" if rank < 0 else rank
    return f"{call}({array.dtype}[{array.size}], {peer}={other}, tag={tag})"


def describe_call(call: Call) -> str:
    """A call of communication with its peers, sizes and tag."""
    name, _, send, to, recv, source, tag = call
    if send is None and recv is None:
        return f"{name}()" if source < 0 else f"{name}(source={source}, tag={tag})"
    sides = []
    if send is not None:
        sides.append(describe_message("send", send, "to", to, tag))
    if recv is not None:
        sides.append(describe_message("recv", recv, "source", source, tag))
    return sides[0] if name in ("send", "recv") else f"{name} of {' and '.join(sides)}"
