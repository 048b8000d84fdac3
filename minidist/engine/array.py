"""Which array library owns an array, and how arrays move between host and device.

Everything above this file is written once against "the array's own module", ``xp``: NumPy on the
host, CuPy on a GPU. The two share their names, so an op that says ``xp.exp(x)`` runs on both.
CuPy is named in this file alone, and imported only when a device is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from types import ModuleType
from typing import Any

import numpy as np

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


# A device's name, before any colon, and what loads the module that computes there.
DEVICES: dict[str, Callable[[], ModuleType]] = {"cpu": lambda: np, "cuda": _load_cupy}

_dtype: ContextVar[np.dtype] = ContextVar("dtype", default=np.dtype(np.float32))  # noqa: B039
_device: ContextVar[str] = ContextVar("device", default="cpu")


def module_of(array: Array) -> ModuleType:
    """The module whose functions work on ``array``: ``numpy``, or ``cupy`` for a GPU array."""
    if isinstance(array, np.ndarray):
        return np
    return sys.modules[type(array).__module__.partition(".")[0]]


def module(device: str | None = None) -> ModuleType:
    """The array module of a device name such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``."""
    name, _, index = (device or _device.get()).partition(":")
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
    """``array`` as a NumPy array, copied from the device if it lives on one."""
    return array if isinstance(array, np.ndarray) else module_of(array).asnumpy(array)


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


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``function(xp, *arrays and numbers)``, a chain of element-wise steps, one GPU kernel.

    Step by step, every line would be a launch of its own and a way to the GPU's memory and back.
    ``cupy.fuse`` runs the function once on stand-ins, notes its steps, and compiles them into one
    kernel. So inside are only arithmetic, in place or not, and ``xp``'s element-wise functions; a
    number that changes from call to call must be an argument, or the first one stays for good. On
    the host the function runs as it is written.
    """

    @cache
    def kernel(xp: Any) -> Callable[..., Any]:
        return xp.fuse(kernel_name=function.__name__)(lambda *given: function(xp, *given))

    @wraps(function)
    def run(xp: Any, *given: Any) -> Any:
        return function(xp, *given) if xp is np else kernel(xp)(*given)

    return run


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


class Work:
    """Counters of the arithmetic done so far, in floating-point operations.

    As usual in the field (PaLM, appendix B, arXiv 2204.02311) only matrix products and
    convolutions count: 2 for each multiply-add. The simulator charges a rank's clock from the
    growth of this counter, and ``summary`` and the cost formulas predict it.
    """

    __slots__ = ("flops",)

    def __init__(self) -> None:
        self.flops = 0


work = Work()
