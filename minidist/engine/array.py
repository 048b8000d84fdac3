"""Which array library owns an array, and how arrays move between host and device.

Everything above this file is written once against "the array's own module", ``xp``: NumPy on the
host, CuPy on a GPU, ``phantom`` for arrays that have shapes and no numbers. They share their names,
so an op that says ``xp.exp(x)`` runs on all. CuPy is named in this file alone, and imported only
when a device is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import numpy as np

from minidist.engine.arithmetic import Work as Work  # where they were before
from minidist.engine.arithmetic import work as work
from minidist.lazy import COMPLETED_BY, complete

Array = Any  # numpy.ndarray or cupy.ndarray: NumPy's stubs do not describe the second
DType = Any  # whatever numpy.dtype() takes: "float32", numpy.float64, ...


class DeviceError(RuntimeError):
    """A device was asked for that this machine or installation does not have."""


def _load_cupy() -> ModuleType:
    try:
        import cupy  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise DeviceError(
            'device "cuda" needs CuPy: pip install "minidist[cuda12]" (or [cuda13])'
        ) from error
    if not cupy.is_available():
        raise DeviceError('device "cuda" was asked for, but CuPy finds no GPU on this machine')
    return cupy


def _load_phantom() -> ModuleType:
    complete(__name__)  # by a package that imports this file
    return sys.modules[COMPLETED_BY[__name__]]


# A device's name, before any colon, and what loads the module that computes there.
DEVICES: dict[str, Callable[[], ModuleType]] = {
    "cpu": lambda: np,
    "cuda": _load_cupy,
    "phantom": _load_phantom,
}

_dtype: ContextVar[np.dtype] = ContextVar("dtype", default=np.dtype(np.float32))  # noqa: B039
_device: ContextVar[str] = ContextVar("device", default="cpu")


def module_of(array: Array) -> ModuleType:
    """The module whose functions work on ``array``: ``numpy``, ``cupy`` or ``phantom``."""
    if isinstance(array, np.ndarray):
        return np
    name = type(array).__module__
    return sys.modules[name if name.startswith("minidist.") else name.partition(".")[0]]


def module(device: str | None = None) -> ModuleType:
    """The array module of a device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"phantom"``."""
    device = device or _device.get()
    if device == "cpu":
        return np
    name, _, index = device.partition(":")
    if name not in DEVICES:
        raise DeviceError(f"unknown device {device!r}: choose one of {', '.join(DEVICES)}")
    xp = DEVICES[name]()
    if index:
        xp.cuda.Device(int(index)).use()
    elif name == "cuda" and _local_rank:
        xp.cuda.Device(_local_rank % xp.cuda.runtime.getDeviceCount()).use()
    return xp


_local_rank = 0


def share_gpus(local_rank: int) -> None:
    """Let ``"cuda"`` mean, in this process, the machine's GPU number ``local_rank``.

    Counted from 0, and around again where a machine has more ranks than GPUs. The MPI world calls
    it with each rank's number on its machine; ``"cuda:1"`` still means GPU 1.
    """
    global _local_rank
    _local_rank = local_rank


def to_device(array: Array, device: str | None = None) -> Array:
    """``array`` on a device, copied only where it has to be."""
    xp = module(device)
    if xp is module_of(array):
        return array
    return xp.asarray(to_host(array))


def to_host(array: Array) -> np.ndarray:
    """``array`` as a NumPy array, copied from the device if it lives on one.

    An array without numbers stays one: its copy would have none either.
    """
    on_host = isinstance(array, (np.ndarray, np.generic))
    return array if on_host else module_of(array).asnumpy(array)


def read(array: Array, rule: float) -> np.ndarray:
    """The numbers of ``array`` on the host; of an array without numbers, ``rule`` for each.

    The one way to let a program depend on values: a loss that is reported, a norm to compare. What
    reads without it is an error on device "phantom". ``rule`` says what to assume there.

    >>> float(read(np.array(0.25), rule=math.nan))
    0.25
    """
    if has_numbers(array):
        return to_host(array)
    return np.full(array.shape, rule, array.dtype)


def has_numbers(array: Array) -> bool:
    """Whether there are numbers in ``array``, and not its shape alone."""
    return module_has_numbers(module_of(array))


def module_has_numbers(xp: Any) -> bool:
    """Whether the arrays of the module ``xp`` have numbers, and not shapes alone."""
    return xp is np or getattr(xp, "has_numbers", True)  # np has a slow __getattr__


def made(make: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: DType, xp: Any) -> Array:
    """What ``make()`` computes on the host (random draws), as an array of the module ``xp``.

    Where arrays have no numbers it is not called.
    """
    if not module_has_numbers(xp):
        return xp.empty(shape, dtype)
    return xp.asarray(make().astype(dtype, copy=False))


def bytes_on_host(array: Array) -> Array:
    """No bytes yet, on the host: to allocate memory like it for copies of ``array``."""
    return np.empty(0, np.uint8) if has_numbers(array) else module_of(array).empty(0, np.uint8)


def address_of(array: Array) -> int:
    """Where ``array`` begins in memory."""
    if isinstance(array, np.ndarray):
        return array.__array_interface__["data"][0]
    return array.data.ptr


def host_buffer(array: Array) -> np.ndarray:
    """An uninitialised host array like ``array``, for a copy to or from its device.

    For a GPU it lies in pinned memory, which the GPU reads and writes by itself: that is faster,
    and the host need not copy first. CuPy keeps freed ones for the next call.
    """
    cuda = getattr(module_of(array), "cuda", None)
    if cuda is None:
        return np.empty(array.shape, array.dtype)
    memory = cuda.alloc_pinned_memory(max(1, array.nbytes))
    return np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)


def stage_out(array: Array) -> np.ndarray:
    """``array`` on the host: itself if it is there, else a copy in pinned memory."""
    if isinstance(array, np.ndarray):
        return array
    if getattr(module_of(array), "cuda", None) is None:
        return to_host(array)
    out = host_buffer(array)
    array.get(out=out)
    return out


def finish_kernels(array: Array) -> None:
    """Wait until all that this thread has asked of the array's GPU is done."""
    cuda = getattr(module_of(array), "cuda", None)
    if cuda is not None:
        cuda.get_current_stream().synchronize()


def stage_in(array: Array, host: np.ndarray) -> None:
    """Copy what came into a ``host_buffer`` to ``array`` on its device; done on return."""
    xp = module_of(array)
    cuda = getattr(xp, "cuda", None)
    if cuda is None:
        array[...] = xp.asarray(host)
        return
    array.set(host)
    finish_kernels(array)  # the buffer may now be used again


class SideStream:
    """A second queue of work for a GPU, used by a thread that communicates.

    Kernels of one queue run in order. On the queue of the computing thread, a copy of a gradient
    to the host would wait for all that is computed meanwhile, and nothing would overlap. On the
    host this class does nothing.
    """

    def __init__(self) -> None:
        self.cuda = getattr(module(), "cuda", None)
        if self.cuda is not None:
            self.device = self.cuda.Device()
            self.stream = self.cuda.Stream(non_blocking=True)

    def mark(self) -> Any:
        """What the calling thread has asked of the GPU so far: ``entered`` waits for it."""
        if self.cuda is None:
            return None
        event = self.cuda.Event(disable_timing=True)
        event.record(self.cuda.get_current_stream())
        return event

    @contextmanager
    def entered(self, mark: Any) -> Iterator[None]:
        """Inside, this thread works on the side stream; at the end all of it is done."""
        if self.cuda is None:
            yield
            return
        with self.device, self.stream:
            self.stream.wait_event(mark)
            yield
            self.stream.synchronize()


def synchronize(device: str | None = None) -> None:
    """Wait until the device has done all it was told; a host is never behind. For timing."""
    cuda = getattr(module(device), "cuda", None)
    if cuda is not None:
        cuda.Device().synchronize()


def default_dtype() -> np.dtype:
    """The dtype of new parameters and of tensors made from Python numbers: float32 at first."""
    return _dtype.get()


@contextmanager
def defaults(dtype: DType | None = None, device: str | None = None) -> Iterator[None]:
    """Use another default dtype or device inside a ``with`` block.

    >>> import minidist as md
    >>> with defaults(dtype="float64"):
    ...     print(md.Tensor([1.0, 2.0]).dtype)
    float64
    """
    kind = np.dtype(dtype) if dtype is not None else _dtype.get()
    if kind.kind != "f":
        raise TypeError(f"the default dtype must be a floating one, not {kind}")
    module(device)  # complain now, not at the first layer
    dtype_token, device_token = _dtype.set(kind), _device.set(device or _device.get())
    try:
        yield
    finally:
        _dtype.reset(dtype_token)
        _device.reset(device_token)


def __getattr__(name: str) -> Any:
    if name == "fused":  # where it was before
        from minidist.engine.fusion import fused

        return fused
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
