"""Which array library owns an array, and how arrays move between host and device.

Ops and methods are written once, for the array's own module ``xp``: NumPy on the host, CuPy on a
GPU, ``phantom`` for arrays that have shapes and no numbers. The three have functions of the same
names, so an op that calls ``xp.exp(x)`` runs on all of them. Only this file imports CuPy, and only
when device "cuda" is asked for.
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
    """This machine or installation does not have the device that was asked for."""


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
    complete(__name__)  # loads engine/phantom, which imports this file
    return sys.modules[COMPLETED_BY[__name__]]


# By a device's name, without any ":1": a function that loads the array module of the device.
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
    """In this process, ``"cuda"`` means GPU number ``local_rank`` modulo the machine's GPUs.

    The MPI world calls it with each rank's number on its machine, counted from 0. ``"cuda:1"``
    still means GPU 1.
    """
    global _local_rank
    _local_rank = local_rank


def to_device(array: Array, device: str | None = None) -> Array:
    """``array`` on a device; copied only if it is on another one."""
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
    """The numbers of ``array`` on the host; for an array without numbers, ``rule`` for each.

    Programs that depend on values, such as a loss to report or a norm to compare, read them with
    this function. On device "phantom" every other way is an error; ``rule`` is the value to assume
    there.

    >>> float(read(np.array(0.25), rule=float("nan")))
    0.25
    """
    if has_numbers(array):
        return to_host(array)
    return np.full(array.shape, rule, array.dtype)


def has_numbers(array: Array) -> bool:
    """Whether ``array`` has numbers, and not only a shape."""
    return module_has_numbers(module_of(array))


def module_has_numbers(xp: Any) -> bool:
    """Whether the arrays of the module ``xp`` have numbers, and not only shapes."""
    return xp is np or getattr(xp, "has_numbers", True)  # np has a slow __getattr__


def made(make: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: DType, xp: Any) -> Array:
    """The result of ``make()``, such as random draws on the host, as an array of the module ``xp``.

    If arrays of ``xp`` have no numbers, ``make`` is not called.
    """
    if not module_has_numbers(xp):
        return xp.empty(shape, dtype)
    return xp.asarray(make().astype(dtype, copy=False))


def bytes_on_host(array: Array) -> Array:
    """An empty array of bytes, of the module in which host copies of ``array`` are allocated."""
    return np.empty(0, np.uint8) if has_numbers(array) else module_of(array).empty(0, np.uint8)


def address_of(array: Array) -> int:
    """The address of the first element of ``array``."""
    if isinstance(array, np.ndarray):
        return array.__array_interface__["data"][0]
    return array.data.ptr


def host_buffer(array: Array) -> np.ndarray:
    """An uninitialised host array like ``array``, for a copy to or from its device.

    For a GPU it lies in pinned memory, which the GPU can read and write directly; from other memory
    the driver would copy first. CuPy keeps freed pinned memory for the next call.
    """
    cuda = getattr(module_of(array), "cuda", None)
    if cuda is None:
        return np.empty(array.shape, array.dtype)
    memory = cuda.alloc_pinned_memory(max(1, array.nbytes))
    return np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)


def stage_out(array: Array) -> np.ndarray:
    """``array`` itself if it is on the host, else a copy of it in pinned host memory."""
    if isinstance(array, np.ndarray):
        return array
    if getattr(module_of(array), "cuda", None) is None:
        return to_host(array)
    out = host_buffer(array)
    array.get(out=out)
    return out


def finish_kernels(array: Array) -> None:
    """Wait until the array's GPU has finished all kernels that this thread has launched."""
    cuda = getattr(module_of(array), "cuda", None)
    if cuda is not None:
        cuda.get_current_stream().synchronize()


def stage_in(array: Array, host: np.ndarray) -> None:
    """Copy a ``host_buffer`` to ``array`` on its device; on return the copy is complete."""
    xp = module_of(array)
    cuda = getattr(xp, "cuda", None)
    if cuda is None:
        array[...] = xp.asarray(host)
        return
    array.set(host)
    finish_kernels(array)  # the buffer may now be used again


class SideStream:
    """A second stream of a GPU, for a thread that communicates.

    The kernels of a stream run in order. On the computing thread's stream, a copy of a gradient to
    the host would wait for all kernels launched before it, so communication and computation would
    not overlap. On the host this class does nothing.
    """

    def __init__(self) -> None:
        self.cuda = getattr(module(), "cuda", None)
        if self.cuda is not None:
            self.device = self.cuda.Device()
            self.stream = self.cuda.Stream(non_blocking=True)

    def mark(self) -> Any:
        """An event after all kernels that this thread has launched; ``entered`` waits for it."""
        if self.cuda is None:
            return None
        event = self.cuda.Event(disable_timing=True)
        event.record(self.cuda.get_current_stream())
        return event

    @contextmanager
    def entered(self, mark: Any) -> Iterator[None]:
        """Inside, this thread launches on the side stream; at the end it waits for all of it."""
        if self.cuda is None:
            yield
            return
        with self.device, self.stream:
            self.stream.wait_event(mark)
            yield
            self.stream.synchronize()


def synchronize(device: str | None = None) -> None:
    """Wait until the device has finished all its work, for timing; on the host it always has."""
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
    module(device)  # raise an error now, and not at the first layer
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
