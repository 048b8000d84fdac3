"""What is under way: messages, and functions on a communication stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Request(ABC):
    """A send or receive under way. Its buffer must not be used until ``wait`` has returned."""

    @abstractmethod
    def wait(self) -> int:
        """Block until it is done. Returns the rank at the other end."""

    @abstractmethod
    def test(self) -> bool:
        """Whether it is done; does not block."""


class Future(ABC):
    """The result of a function that runs on a rank's communication stream: see ``Comm.spawn``."""

    @abstractmethod
    def wait(self) -> Any:
        """Block until the function has returned; its result."""
