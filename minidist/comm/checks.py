"""What is checked before a message leaves: peer, tag, type, contiguity, dtype, overlap.

Each check raises ``CommError`` with the rank, the call, the values and what to do. The length
is checked where both sides meet: in the simulator, and when an MPI message has arrived.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.comm.errors import CommError
from minidist.engine.array import Array, module_of

ANY = -1  # as a source: receive from whoever sends first
HOST = np.ndarray  # the type of arrays on the host
NUMBERS = frozenset(map(np.dtype, "?bBhHiIlLqQefdgFDG"))  # dtypes, in this machine's byte order
LARGEST_TAG = 32767  # the MPI standard promises no more (MPI_TAG_UB)


def no_comm(found: object, what: str) -> CommError:
    """The error to raise where ``found`` was passed in place of a Comm."""
    kind = type(found)
    if kind.__module__.startswith("mpi4py"):
        return CommError(
            f"{what} needs a Comm of minidist, and this is mpi4py's {kind.__name__}: pass "
            "Comm.from_mpi(...) of it (from minidist import Comm)"
        )
    return CommError(
        f"{what} needs a Comm, which launch(...) gives to each rank, not {kind.__name__}"
    )


def check_message(
    rank: int, size: int, call: str, array: Array, peer: int, tag: int = 0, into: bool = False
) -> None:
    """``array`` can be sent to ``peer`` of ``size`` ranks, or received from it (``into``).

    The same in both worlds: what one MPI library accepts, and another or the simulator does not, is
    refused everywhere.
    """
    check_peer(rank, size, call, peer, tag, into)
    what = f"rank {rank}: {call} {peer}"
    check_array(what, array)
    if not array.flags.c_contiguous:
        raise CommError(
            f"{what}: the array of shape {array.shape} is not "
            "contiguous: " + ("receive into a contiguous one and copy" if into else "copy it")
        )
    if into and not getattr(array.flags, "writeable", True):
        raise CommError(f"{what}: the array is read-only")


def check_peer(rank: int, size: int, call: str, peer: int, tag: int, into: bool) -> None:
    """``peer`` is a rank, or ``ANY`` as a source, and ``tag`` a number that every MPI takes."""
    whole = isinstance(peer, (int, np.integer)) and not isinstance(peer, bool)
    if not whole or not (0 <= peer < size or (peer == ANY and into)):
        raise CommError(f"rank {rank}: {call} {peer!r}: ranks are 0 to {size - 1}")
    whole = isinstance(tag, (int, np.integer)) and not isinstance(tag, bool)
    if not whole or not 0 <= tag <= LARGEST_TAG:
        raise CommError(
            f"rank {rank}: {call} {peer}: the tag {tag!r} must be a whole number from 0 to "
            f"{LARGEST_TAG}, which every MPI library takes"
        )


def check_root(rank: int, size: int, operation: str, root: Any) -> None:
    """``root`` is a rank: a negative one would be taken for ``ANY``."""
    if type(root) is int and 0 <= root < size:  # the usual case, quickly
        return
    if not isinstance(root, (int, np.integer)) or isinstance(root, bool) or not 0 <= root < size:
        raise CommError(f"rank {rank}: {operation} with root {root!r}: ranks are 0 to {size - 1}")


def check_array(what: str, array: Array) -> None:
    """``array`` is an array whose memory MPI can read and write without a conversion."""
    try:
        flags, dtype = array.flags, array.dtype
    except AttributeError:
        flags = None
    if flags is None or isinstance(array, np.generic):
        raise CommError(
            f"{what} takes an array, not {type(array).__name__}: "
            "wrap numbers with numpy.array([...])"
        )
    if dtype.hasobject:
        raise CommError(f"{what}: arrays of objects cannot be sent")
    if not dtype.isnative:
        raise CommError(
            f"{what}: the array is of dtype {dtype.str!r}, whose byte order is not this "
            f"machine's: pass its astype({dtype.newbyteorder('=').name!r})"
        )
    if not getattr(flags, "aligned", True):
        raise CommError(f"{what}: the array is not aligned in memory: pass a copy of it")


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
    """A collective's array is contiguous. Of any other, and of a number, only a copy in one
    dimension could be reduced, and the caller would not get the result."""
    check_array(f"rank {rank}: a collective", array)
    if not array.flags.c_contiguous:
        raise CommError(
            f"rank {rank}: a collective takes contiguous arrays, and the one of shape "
            f"{array.shape} is not: pass numpy.ascontiguousarray(...), and copy the result back"
        )
