"""Runs under mpiexec: every rank raises the same Disagreement, and nothing of it is counted.

In debug mode, messages of another dtype are refused, too, in every way to receive.
"""

import os

import numpy as np

from minidist import launch
from minidist.comm import CommError, Disagreement, print_once
from minidist.comm.checks import ANY
from minidist.comm.mpi import buffers
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
        method.debug = True  # as if built with MINIDIST_DEBUG=1
        method.step(Batches(DATA, 6)[1])
        text = same_everywhere(comm, message_of(method.step, own[2]))
        assert "rank 1 has step(): step 2 of" in text, text


def recv_later(comm, array, source):
    return comm.irecv(array, source, tag=3).wait()


def recv_tested(comm, array, source):
    request = comm.irecv(array, source, tag=3)
    while not request.test():
        pass
    return source


def recv_both(comm, array, source):
    return comm.sendrecv(np.ones(3), source, array, source, tag=3)


def recv_known(comm, array, source):
    comm.wait_for(source, tag=3)
    return comm.recv(array, source, tag=3)


RECEIVE = {
    "recv": lambda comm, array, source: comm.recv(array, source, tag=3),
    "from anyone": lambda comm, array, source: comm.recv(array, ANY, tag=3),
    "irecv": recv_later, "test": recv_tested, "sendrecv": recv_both, "wait_for": recv_known,
}  # fmt: skip
PAIRS = [("float64", 8, "int64", 8), ("float32", 8, "int64", 4), ("bool", 6, "uint8", 6)]
PAIRS += [("float16", 5, "int16", 5), ("complex64", 3, "float64", 3)]


def receive(comm, how, sent, received):
    """Rank 1 sends, and rank 0 receives; what is raised on rank 0."""
    if comm.rank == 1:
        (comm.sendrecv if how == "sendrecv" else send_only)(sent, 0, np.zeros(3), 0, 3)
        return ""
    try:
        assert RECEIVE[how](comm, received, 1) == 1
    except CommError as error:
        return str(error)
    return ""


def messages(comm):
    send_only.comm = comm
    for crowded, piece in ((True, 1 << 30), (False, 1 << 30), (False, 32)):
        comm._crowded, buffers.PIECE = crowded, piece
        for number, how in enumerate(RECEIVE):
            if comm.rank > 1 or (how == "from anyone" and piece == 32):
                continue
            before = comm.trace.sent.nbytes
            for kind in ("float64", "float32", "bool", "float16", "complex64", "uint8"):
                sent, got = np.arange(7).astype(kind), np.zeros(7, kind)
                assert receive(comm, how, sent, got) == ""
                assert comm.rank == 1 or (got == sent).all(), (how, kind, got)
            assert receive(comm, how, np.zeros(0), np.zeros(0)) == ""
            sent = 7 * (8 + 4 + 1 + 2 + 8 + 1) if comm.rank or how == "sendrecv" else 0
            assert comm.trace.sent.nbytes - before == sent, "labels are not counted"
            one, length, other, expected = PAIRS[number % len(PAIRS)]
            got = np.zeros(expected, other)
            text = receive(comm, how, np.ones(length, one), got)
            assert not got.any(), "nothing is copied"
            wanted = (
                f"rank 0 received {one} from rank 1 where it expected {other}[{expected}]: both"
            )
            assert comm.rank == 1 or text.startswith(wanted), (how, text)
            if piece > 32:  # as many pieces on both sides
                text = receive(comm, how, np.ones(2), np.zeros(3))
                wanted = "received 16 bytes from rank 1 where it expected float64[3], 24 bytes"
                assert comm.rank == 1 or wanted in text, (how, text)
    comm._crowded, buffers.PIECE = True, 1 << 30


def send_only(array, to, _, source, tag):
    send_only.comm.send(array, to, tag)


launch(main)
os.environ["MINIDIST_DEBUG"] = "1"
launch(messages)
print_once("passed")
