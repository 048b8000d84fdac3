"""How ops record, and how a backward runs: switched inside a ``with`` block.

    no_grad()                   nothing is recorded
    enable_grad()               recorded again, inside ``no_grad``
    defer_weight_gradients()    a backward computes the gradients of inputs, and queues the weights'
    keep_buffers()              running averages do not change

The setting belongs to a context (``contextvars``): each rank in a process, and each thread, has its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any


class Mode:
    """How the current rank, or thread, records."""

    __slots__ = ("deferred", "meter", "recording", "updating", "watchers")

    def __init__(
        self,
        recording: bool = True,
        deferred: list[Callable[[], None]] | None = None,
        meter: Any = None,  # see inspect/meter.py
        watchers: tuple[Any, ...] = (),  # see watch()
        updating: bool = True,  # see keep_buffers()
    ) -> None:
        self.recording = recording
        self.deferred = deferred
        self.meter = meter
        self.watchers = watchers
        self.updating = updating


MODE: ContextVar[Mode] = ContextVar("mode", default=Mode())  # noqa: B039 (never mutated)


def current_mode() -> Mode:
    """How this rank, or thread, records now."""
    return MODE.get()


@contextmanager
def set_mode(**changes: Any) -> Iterator[None]:
    """Change some of the current ``Mode`` inside."""
    old = MODE.get()
    new = Mode(old.recording, old.deferred, old.meter, old.watchers, old.updating)
    for name, value in changes.items():
        setattr(new, name, value)
    token = MODE.set(new)
    try:
        yield
    finally:
        MODE.reset(token)


@contextmanager
def watch(watcher: Any) -> Iterator[None]:
    """Call ``watcher`` for every op inside: inspect/ finds anomalies and counts ops this way.

    After the forward of an op, ``watcher.after_forward(data, parents, backward)`` is called. After
    its backward, ``watcher.after_backward(node, grad, parts)`` is called and returns ``parts``, the
    gradients for the parents; it may replace callables among them by the arrays they return.
    """
    with set_mode(watchers=(*MODE.get().watchers, watcher)):
        yield


@contextmanager
def no_grad() -> Iterator[None]:
    """Compute without recording: for evaluation, and for updates of parameters."""
    with set_mode(recording=False):
        yield


@contextmanager
def enable_grad() -> Iterator[None]:
    """Record inside, even within ``no_grad``: for a recomputation during a backward."""
    with set_mode(recording=True):
        yield


@contextmanager
def keep_buffers() -> Iterator[None]:
    """Compute inside without changing buffers, such as batch norm's running averages.

    For a forward that is not a step of training, such as a recomputation or a measurement.
    """
    with set_mode(updating=False):
        yield


class Deferred(list):
    """A queue of weight gradients still to be computed; ``run()`` computes them in order."""

    def run(self) -> None:
        while self:
            self.pop(0)()


@contextmanager
def defer_weight_gradients() -> Iterator[Deferred]:
    """Inside, a backward computes only the gradients of inputs, and queues those of the weights.

    Yields the queue. Zero-bubble pipelines (arXiv 2401.10241, section 2) send the input gradient
    to the previous stage first and ``run()`` the queue when they would otherwise be idle.
    """
    queue = Deferred()
    with set_mode(deferred=queue):
        yield queue
