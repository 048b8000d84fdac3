"""Calls of communication: in words, and compared over the ranks.

While a rank is in a call, its trace has a ``Call``: a plain tuple, because one is made for every
message. The watchdog of the MPI world reports it when the call does not return. ``Deadlock``, of
the local world, uses the same words.

Ranks that call different collectives, or the same one on arrays of different shapes or dtypes, hang
or get wrong numbers: an MPI library sees bytes, and cannot know. So each call of a collective is
compared over the ranks, in the order of calls: operation, algorithm, shape, dtype, reduction, root.
If they differ, every rank raises ``CollectiveMismatch``, which says who called what, and where:

    ranks do not agree: rank 0 has called all_reduce by ring of float32[1000], op='sum', at
    train.py:31 in "main"; rank 1 has called all_reduce by ring of float32[999], op='sum', at ...

The local world always does this, without a message. In the MPI world each call costs an exchange,
so it is done only with ``MINIDIST_DEBUG=1`` in the environment. How: see agreement.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from traceback import walk_stack
from types import FrameType
from typing import Any

from minidist.comm.errors import CollectiveMismatch, Disagreement
from minidist.engine.array import Array

Comm = Any  # minidist.comm.comm, whose trace imports this file

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


def describe_collective(operation: str, algorithm: str, arguments: Mapping[str, Any]) -> str:
    """What must be the same on all ranks: "all_reduce by ring of float32[10], op='sum'"."""
    arrays = [_described(value) for value in arguments.values() if not _is_plain(value)]
    others = [f", {name}={value!r}" for name, value in arguments.items() if _is_plain(value)]
    return f"{operation} by {algorithm} of {' and '.join(arrays)}{''.join(others)}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def _described(value: Any) -> str:
    """An array by dtype and shape; a list of arrays by length: its parts may differ over ranks."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    return f"{len(value)} arrays" if isinstance(value, Sequence) else type(value).__name__


def compare_calls(comm: Comm, call: str) -> None:
    """Raise CollectiveMismatch on every rank of ``comm`` unless all make this ``call``."""
    if comm.size == 1:
        return
    digest = int.from_bytes(blake2b(call.encode(), digest_size=8).digest(), "little")
    try:
        comm._agree(digest, f"called {call}, {users_line(sys._getframe(1))}")
    except Disagreement as error:
        if " called " not in str(error):
            raise  # another rank's, about what ranks agree on
        raise CollectiveMismatch(str(error)) from None
