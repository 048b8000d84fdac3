"""The call of communication that a rank is in, and the words for it when it does not return.

The public calls of ``Comm`` leave a ``Call`` in the rank's trace while they last: a plain tuple,
because it is made for every message. The watchdog of the MPI world reports it; the local world's
``Deadlock`` uses the same words.
"""

from __future__ import annotations

from traceback import walk_stack
from types import FrameType

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
        if source >= 0:
            return f"{name}(source={source}, tag={tag})"
        return name if " " in name else f"{name}()"  # a name of words is no function's
    sides = []
    if send is not None:
        sides.append(describe_message("send", send, "to", to, tag))
    if recv is not None:
        sides.append(describe_message("recv", recv, "source", source, tag))
    return sides[0] if name in ("send", "recv") else f"{name} of {' and '.join(sides)}"


def users_line(frame: FrameType | None) -> str:
    """The innermost line outside this package, such as 'at train.py:31 in "main"'; or ''.

    Only names of files and functions are read, never variables.
    """
    ours = ("minidist.", "threading", "concurrent.", "runpy", "importlib")
    for outer, line in walk_stack(frame):
        if not outer.f_globals.get("__name__", "").startswith(ours):
            return f'at {outer.f_code.co_filename}:{line} in "{outer.f_code.co_name}"'
    return ""
