"""Runs under mpiexec: compressed and clipped pushes; or, with an argument, a rank that fails."""

import os
import signal
import sys
from functools import partial

from minidist import launch
from minidist.comm import Crash
from minidist.parallel import METHODS
from tests.parallel.checks import Setting, check_equals_serial, check_predictions, make, train
from tests.parallel.server.test_pushes import (
    COMPRESSORS,
    KINDS,
    LOSSLESS,
    SYNCHRONOUS,
    check_clipped_here,
)


def checks(comm):
    """What test_pushes.py holds the local world to, on these ranks."""
    for name, kind in KINDS.items():
        if comm.size <= getattr(kind, "keywords", {}).get("servers", 0):
            continue
        for compressor in COMPRESSORS:
            METHODS["pushes"] = partial(kind, compressor=compressor)
            check_predictions(comm, "pushes", Setting(steps=2))
        METHODS["pushes"] = partial(kind, clip=0.3)
        check_predictions(comm, "pushes", Setting(steps=2))
        if name in SYNCHRONOUS:
            check_clipped_here(comm, name, Setting())
            for compressor in LOSSLESS:
                METHODS["pushes"] = partial(kind, compressor=compressor)
                check_equals_serial(comm, "pushes", Setting())
        if comm.rank == 0:
            print("passed", name)


def fails(comm, key, how):
    """The last rank, a worker, fails in its third step."""
    method = make(key, comm, Setting())
    compute, last = method.forward_backward if method.works else None, comm.size - 1

    def deadly(batch):
        if batch.step == 2:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Crash("power cut")
        return compute(batch)

    if comm.rank == last:
        method.forward_backward = deadly
    train(method, Setting())


if len(sys.argv) > 1:
    launch(lambda comm: fails(comm, *sys.argv[1:]))
    print("finished")
else:
    launch(checks)
