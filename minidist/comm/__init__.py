"""Ranks and the messages between them, in one process or over MPI."""

from minidist.comm.comm import Comm, CommError, Crash, Future, RankLost, Request
from minidist.comm.launch import first_process, launch, print_once
from minidist.comm.local.world import Deadlock, LocalWorld
from minidist.comm.machine import PROFILES, Link, Machine, Pauses
from minidist.comm.timeline import Timeline

__path__.append(f"{__path__[0]}/../moved/comm")  # modules under their old names: see minidist/moved

__all__ = [
    "PROFILES",
    "Comm",
    "CommError",
    "Crash",
    "Deadlock",
    "Future",
    "Link",
    "LocalWorld",
    "Machine",
    "Pauses",
    "RankLost",
    "Request",
    "Timeline",
    "first_process",
    "launch",
    "print_once",
]
