"""Following an array through a collective, a reader opens few files, and no long one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import minidist
from minidist import LocalWorld, launch
from minidist.collectives import ring

RING = [
    "collectives.algorithm",  # the call is compared over the ranks
    "comm.messages",  # what a rank can send and receive
    "comm.local.comm",  # in one process:
    "collectives.ring",  # the rounds
    "comm.local.scheduler",  # which rank runs next
    "comm.local.simulator",  # both sides of a message
    "comm.machine",  # how long it takes
]


def modules_of(function):
    """The modules of minidist whose functions ``function`` calls, in that order."""
    found = {}

    def on_event(frame, event, argument):
        name = frame.f_globals.get("__name__", "")
        if event == "call" and name.startswith("minidist."):
            found.setdefault(name.removeprefix("minidist."))

    sys.setprofile(on_event)
    try:
        function()
    finally:
        sys.setprofile(None)
    return list(found)


def test_a_ring_in_the_local_world():
    def main(comm):
        array = np.ones(8, np.float32)
        ring.all_reduce(comm, array)  # allocates what later calls use
        return modules_of(lambda: ring.all_reduce(comm, array))

    found = launch(main, 2, LocalWorld())[0]
    assert sorted(found) == sorted(RING), found


def test_no_file_of_comm_is_two_ideas():
    files = Path(minidist.__file__).parent.glob("comm/**/*.py")
    lines = {path.name: len(path.read_text().splitlines()) for path in files}
    assert len(lines) > 25 and max(lines.values()) <= 300, lines
