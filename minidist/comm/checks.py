"""What is checked before a message leaves: peer, type, contiguity, dtype, overlap.

Each check raises ``CommError`` with the rank, the call, the values and what to do. The length
is checked where both sides meet: in the simulator, and when an MPI message has arrived.
"""

from __future__ import annotations

import numpy as np

from minidist.comm.errors import CommError
from minidist.engine.array import Array, module_of

ANY = -1  # as a source: receive from whoever sends first
HOST = np.ndarray  # the type of arrays on the host


def check_message(
    rank: int, size: int, call: str, array: Array, peer: int, into: bool = False
) -> None:
    """``array`` can be sent to ``peer`` of ``size`` ranks, or received from it (``into``)."""
    if type(array) is HOST and 0 <= peer < size:  # the usual case, quickly
        flags = array.flags  # carray: contiguous, aligned and writeable
        if (flags.carray if into else flags.c_contiguous) and not array.dtype.hasobject:
            return
    if not (0 <= peer < size or (peer == ANY and into)):
        raise CommError(f"rank {rank}: {call} {peer}: ranks are 0 to {size - 1}")
    try:
        flags = array.flags
    except AttributeError:
        raise CommError(
            f"rank {rank}: {call} {peer} takes an array, not {type(array).__name__}: "
            "wrap numbers with numpy.array([...])"
        ) from None
    if not flags.c_contiguous:
        raise CommError(
            f"rank {rank}: {call} {peer}: the array of shape {array.shape} is not "
            "contiguous: " + ("receive into a contiguous one and copy" if into else "copy it")
        )
    if array.dtype.hasobject:
        raise CommError(f"rank {rank}: {call} {peer}: arrays of objects cannot be sent")
    if into and not getattr(flags, "writeable", True):
        raise CommError(f"rank {rank}: {call} {peer}: the array is read-only")


def check_apart(rank: int, send: Array, to: int, recv: Array, source: int) -> None:
    """The two arrays of a ``sendrecv`` share no memory."""
    xp = module_of(send)
    if xp is module_of(recv) and xp.may_share_memory(send, recv):  # contiguous: so they do
        raise CommError(
            f"rank {rank}: sendrecv to {to} and from {source}: the two arrays share "
            "memory, so what arrives would overwrite what is being sent: receive into another "
            "array, such as comm.scratch(...)"
        )


def check_alike(rank: int, into: Array, other: Array) -> None:
    """Two arrays to be combined have one dtype, and are on one device."""
    mine, theirs = module_of(into).__name__, module_of(other).__name__
    if (mine, into.dtype) != (theirs, other.dtype):
        raise CommError(
            f"rank {rank}: combine of {theirs} {other.dtype}[{other.size}] into {mine} "
            f"{into.dtype}[{into.size}]: both must be of one dtype, on one device"
        )


def check_flat(rank: int, array: Array) -> None:
    """A collective's array is contiguous: of another there is only a copy in one dimension, so
    the caller would not get the result."""
    if not array.flags.c_contiguous:
        raise CommError(
            f"rank {rank}: a collective takes contiguous arrays, and the one of shape "
            f"{array.shape} is not: pass numpy.ascontiguousarray(...), and copy the result back"
        )
