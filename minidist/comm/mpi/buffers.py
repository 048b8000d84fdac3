"""What MPI is given for an array: host memory, in a dtype that it knows, in pieces.

An array on a GPU is copied to host memory first (staged), and from there after a receive: the MPI
wheels cannot read a device's memory. A cluster's own MPI may be able to; it is then called
GPU-aware. With ``MINIDIST_GPU_AWARE_MPI=1`` in the environment MPI is given the GPU's array itself.

Dtypes that MPI does not know go as bytes, and long messages in pieces, because not every library
counts past 2³¹.
"""

from __future__ import annotations

import os

import numpy as np

from minidist.comm.trace import Sent
from minidist.engine.array import Array, finish_kernels, host_buffer, stage_in, stage_out

PIECE = 1 << 30  # bytes: longer messages go in pieces of this many
GPU_AWARE = os.environ.get("MINIDIST_GPU_AWARE_MPI") == "1"


def outgoing(array: Array, sent: Sent) -> list[Array]:
    """``array`` on the host, in pieces; a copy from a device is added to ``sent.staged``."""
    if GPU_AWARE and not isinstance(array, np.ndarray):
        finish_kernels(array)  # MPI does not wait for what is still to be computed
        return pieces(array)
    host = stage_out(array)
    if host is not array:
        sent.staged += array.nbytes
    return pieces(host)


def incoming(array: Array) -> tuple[Array, list[Array]]:
    """A buffer for what ``array`` is to receive, whole and in pieces: the array if MPI can."""
    if GPU_AWARE and not isinstance(array, np.ndarray):
        finish_kernels(array)  # that may still read or write what will be overwritten
        return array, pieces(array)
    host = array if isinstance(array, np.ndarray) else host_buffer(array)
    return host, pieces(host)


def arrived(array: Array, host: Array, sent: Sent) -> None:
    """Copy what was received in ``host`` to ``array``, if that is on a device."""
    if array is not host:
        stage_in(array, host)
        sent.staged += array.nbytes


def pieces(host: Array) -> list[Array]:
    """The memory of ``host`` as arrays of at most ``PIECE`` bytes, of a dtype that MPI knows."""
    if host.dtype.kind not in "iuf" or host.itemsize == 2:
        host = host.reshape(-1).view(np.uint8)
    if host.nbytes <= PIECE:
        return [host]
    flat, length = host.reshape(-1), max(1, PIECE // host.itemsize)
    return [flat[start : start + length] for start in range(0, flat.size, length)]
