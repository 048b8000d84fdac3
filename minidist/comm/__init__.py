"""Ranks and the messages between them, in one process or over MPI."""

from minidist.comm.comm import Comm, CommError, Future, Request
from minidist.comm.launch import first_process, launch, print_once
from minidist.comm.local import Deadlock, LocalWorld
from minidist.comm.machine import Machine

__all__ = [
    "Comm",
    "CommError",
    "Deadlock",
    "Future",
    "LocalWorld",
    "Machine",
    "Request",
    "first_process",
    "launch",
    "print_once",
]
