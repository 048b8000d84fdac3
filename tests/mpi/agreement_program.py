"""Runs under mpiexec: every rank raises the same Disagreement, and nothing of it is counted."""

import os

import numpy as np

from minidist import launch
from minidist.comm import Disagreement, print_once
from minidist.data import Batches
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel, Pipeline, StaleParameterServer
from tests.parallel.checks import images

DATA = images()


def message_of(call, *arguments):
    try:
        call(*arguments)
    except Disagreement as error:
        return str(error)
    return ""


def same_everywhere(comm, text):
    """The text, which is the same on every rank, and no rank has none."""
    rows = np.zeros((comm.size, 400), np.uint8)
    comm.library("Allgather", np.frombuffer(text.encode().ljust(400), np.uint8).copy(), rows)
    assert (rows == rows[0]).all(), text
    return text


def main(comm):
    sent = comm.trace.sent.messages
    comm.agree("the number", 3)
    text = same_everywhere(comm, message_of(comm.agree, "the number", comm.rank // 2, "it"))
    assert text.startswith("ranks do not agree: ranks 0, 1 have the number: it (digest"), text
    assert "; rank 2 has the number: it (digest" in text, text
    comm.agree("and goes on", 4)
    assert comm.trace.sent.messages == sent

    for kind in (DataParallel, Pipeline, StaleParameterServer):
        method = kind(mlp((12, 9, 8, 7, 5)), CrossEntropy(), SGD(0.1), comm)
        own = Batches(DATA, 6, seed=comm.rank)  # each rank shuffles by itself
        text = same_everywhere(comm, message_of(method.step, own[0]))
        assert "rank 0 has step(): step 0 of" in text and "seed 0, on 6 samples" in text, text
        method.step(Batches(DATA, 6)[0])
        os.environ["MINIDIST_DEBUG"] = "1"
        method.step(Batches(DATA, 6)[1])
        text = same_everywhere(comm, message_of(method.step, own[2]))
        assert "rank 1 has step(): step 2 of" in text, text
        del os.environ["MINIDIST_DEBUG"]


launch(main)
print_once("passed")
