"""Ranks and the messages between them, in one process or over MPI."""

from minidist.comm.comm import Comm, CommError, Crash, Future, RankLost, Request
from minidist.comm.launch import first_process, launch, print_once
from minidist.comm.local import Deadlock, LocalWorld
from minidist.comm.machine import Machine

__all__ = [
    "Comm",
    "CommError",
    "Crash",
    "Deadlock",
    "Future",
    "LocalWorld",
    "Machine",
    "RankLost",
    "Request",
    "first_process",
    "launch",
    "print_once",
]
