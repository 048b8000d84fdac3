"""What MPI is given for an array: host memory, in a dtype that it knows, in pieces.

An array on a GPU is copied to host memory first (staged), and from there after a receive: the MPI
wheels cannot read a device's memory. A cluster's own MPI may be able to; it is then called
GPU-aware. With ``MINIDIST_GPU_AWARE_MPI=1`` in the environment MPI is given the GPU's array itself.

Dtypes that MPI does not know go as bytes, and long messages in pieces, because not every library
counts past 2³¹.

MPI does not notice that float64 are received as int64. So in debug mode each message ends with a
label, the dtype's name, and both sides use a copy of the array with room for it.
"""

from __future__ import annotations

import os

import numpy as np

from minidist.comm.trace import Sent
from minidist.engine.array import Array, finish_kernels, host_buffer, stage_in, stage_out, to_host

KNOWN = frozenset(map(np.dtype, "bBhHiIlLqQfdg"))  # dtypes that MPI has too
PIECE = 1 << 30  # bytes: longer messages go in pieces of this many
GPU_AWARE = os.environ.get("MINIDIST_GPU_AWARE_MPI") == "1"
LABEL = 16  # bytes of a dtype's name behind a message, in debug mode


def outgoing(array: Array, sent: Sent, labelled: bool = False) -> list[Array]:
    """``array`` on the host, in pieces; a copy from a device is added to ``sent.staged``."""
    if labelled:
        host = np.empty(array.nbytes + LABEL, np.uint8)
        host[:-LABEL] = to_host(array).reshape(-1).view(np.uint8)
        host[-LABEL:] = label(array)
        sent.staged += 0 if isinstance(array, np.ndarray) else array.nbytes
        return pieces(host)
    if GPU_AWARE and not isinstance(array, np.ndarray):
        finish_kernels(array)  # MPI does not wait for what is still to be computed
        return pieces(array)
    host = stage_out(array)
    if host is not array:
        sent.staged += array.nbytes
    return pieces(host)


def label(array: Array) -> np.ndarray:
    """The dtype of ``array`` as ``LABEL`` bytes."""
    return np.frombuffer(array.dtype.name.encode().ljust(LABEL), np.uint8)


def incoming(array: Array, labelled: bool = False) -> tuple[Array, list[Array]]:
    """A buffer for what ``array`` is to receive, whole and in pieces: the array if MPI can."""
    if labelled:
        host = np.empty(array.nbytes + LABEL, np.uint8)
        return host, pieces(host)
    if GPU_AWARE and not isinstance(array, np.ndarray):
        finish_kernels(array)  # that may still read or write what will be overwritten
        return array, pieces(array)
    host = array if isinstance(array, np.ndarray) else host_buffer(array)
    return host, pieces(host)


def arrived(array: Array, host: Array, sent: Sent) -> str | None:
    """Copy what was received in ``host`` to ``array``, if that is not the same; returns None.

    If the label is that of another dtype, nothing is copied, and its name is returned. Without a
    label no dtype's name is asked for, which takes microseconds.
    """
    if host.nbytes != array.nbytes:
        name = host[-LABEL:].tobytes().decode(errors="replace").strip()
        if name != array.dtype.name:
            return name
        host = host[:-LABEL].view(array.dtype).reshape(array.shape)
        if isinstance(array, np.ndarray):
            array[...] = host
            return None
    if array is not host:
        stage_in(array, host)
        sent.staged += array.nbytes
    return None


def pieces(host: Array) -> list[Array]:
    """The memory of ``host`` as arrays of at most ``PIECE`` bytes, of a dtype that MPI knows."""
    if host.dtype not in KNOWN:
        host = host.reshape(-1).view(np.uint8)
    if host.nbytes <= PIECE:
        return [host]
    flat, length = host.reshape(-1), max(1, PIECE // host.itemsize)
    return [flat[start : start + length] for start in range(0, flat.size, length)]
