"""Ops that send: gradients across ranks, checked on one rank in either world.

All of these ops are linear. So the forward on x and the backward on w are checked by one number:
Σ ⟨w, forward(x)⟩ = Σ ⟨backward(w), x⟩, where what all ranks hold in common is counted once.
"""

from __future__ import annotations

import numpy as np

from minidist.collectives import all_reduce
from minidist.engine.tensor import Tensor
from minidist.ops import collectives as messages

SHARED, OWN = "one value, the same on all ranks", "each rank its own"
LENGTHS = [2, 1, 3, 1]


def lengths(comm):
    return LENGTHS[: comm.size]


# name: (what x is, what the result is, the op, x's shape on this rank)
CASES = {
    "copy_to": (SHARED, OWN, messages.copy_to, lambda c: (2, 3)),
    "reduce_from": (OWN, SHARED, messages.reduce_from, lambda c: (2, 3)),
    "gather": (OWN, SHARED, messages.gather, lambda c: (2, 3)),
    "gather uneven": (
        OWN,
        SHARED,
        lambda x, c: messages.gather(x, c, 1, lengths(c)),
        lambda c: (2, lengths(c)[c.rank], 2),
    ),
    "scatter": (SHARED, OWN, messages.scatter, lambda c: (2, 7)),
    "all_gather": (OWN, OWN, lambda x, c: messages.all_gather(x, c, 0), lambda c: (2, 3)),
    "all_gather uneven": (
        OWN,
        OWN,
        lambda x, c: messages.all_gather(x, c, 1, lengths(c)),
        lambda c: (2, lengths(c)[c.rank], 2),
    ),
    "reduce_scatter": (
        OWN,
        OWN,
        lambda x, c: messages.reduce_scatter(x, c, 1),
        lambda c: (2, 7, 2),
    ),
    "all_to_all": (
        OWN,
        OWN,
        lambda x, c: messages.all_to_all(x, c, 1, 2),
        lambda c: (2, 2 * c.size, 3),
    ),
}


def check_adjoint(comm, name):
    """Σ ⟨w, forward(x)⟩ = Σ ⟨backward(w), x⟩ over all ranks."""
    x_is, y_is, op, shape = CASES[name]

    def drawn(kind, shape):
        return np.random.default_rng(comm.rank if kind is OWN else 99).standard_normal(shape)

    x = Tensor(drawn(x_is, shape(comm)), requires_grad=True)
    y = op(x, comm)
    w = drawn(y_is, y.shape)
    kept = w.copy()
    y.backward(w)
    assert np.array_equal(w, kept), f"{name} wrote into the gradient that came"
    assert x.grad.shape == x.shape
    pair = np.array([(w * y.data).sum(), (x.grad * x.data).sum()])
    for index, kind in enumerate((y_is, x_is)):
        if kind is SHARED and comm.rank:
            pair[index] = 0
    all_reduce(comm, pair)
    forward, backward = pair
    assert abs(forward - backward) <= 1e-12 * max(1, abs(forward)), f"{name}: {forward}, {backward}"
    for kind, array in ((y_is, y.data), (x_is, x.grad)):
        if kind is SHARED:  # and then it is the same on every rank, bit by bit
            top, low = array.copy(), array.copy()
            all_reduce(comm, top, "max")
            all_reduce(comm, low, "min")
            assert np.array_equal(top, low), f"{name}: ranks differ"


def check_forward(comm):
    """What each op computes, in numbers that differ on every rank."""
    p, r = comm.size, comm.rank
    x = Tensor(np.array([[r + 1.0, 10.0 * r]]))
    all_of = np.array([[[q + 1.0, 10.0 * q]] for q in range(p)])
    assert np.array_equal(messages.copy_to(x, comm).data, x.data)
    assert np.array_equal(messages.reduce_from(x, comm).data, all_of.sum(0))
    for op in (messages.gather, messages.all_gather):
        assert np.array_equal(op(x, comm, 0).data, all_of[:, 0])
    whole = np.arange(2.0 * p).reshape(1, 2 * p)
    own = whole[:, 2 * r : 2 * r + 2]
    assert np.array_equal(messages.scatter(whole, comm).data, own)
    assert np.array_equal(
        messages.reduce_scatter(whole * (r + 1), comm).data, own * p * (p + 1) / 2
    )
    blocks = np.array([[10.0 * r + q] for q in range(p)])
    assert np.array_equal(
        messages.all_to_all(blocks, comm).data, [[10.0 * q + r] for q in range(p)]
    )


def check_send_and_recv(comm):
    """x goes around from rank to rank, times 2 on the last; its gradient comes back."""
    p, r = comm.size, comm.rank
    if p == 1:
        return
    x = Tensor(np.arange(3.0), requires_grad=True)
    if r == 0:
        messages.send(x * 3.0, comm, 1).backward()
        assert np.array_equal(x.grad, 3.0 * 2.0 ** (p - 2) * np.arange(1.0, 4.0)), x.grad
        return
    y = messages.recv(x.data, comm, r - 1)
    if r < p - 1:
        messages.send(y * 2.0, comm, r + 1).backward()
    else:
        y.backward(np.arange(1.0, 4.0))


def check_messages(comm):
    """Each backward sends what its conjugate's forward sends."""
    n, size = 12 * comm.size, comm.size

    def sent(run):
        before = comm.trace.sent.messages, comm.trace.sent.nbytes
        run()
        return comm.trace.sent.messages - before[0], comm.trace.sent.nbytes - before[1]

    for op, ways in (
        (messages.copy_to, (0, 2)),
        (messages.reduce_from, (2, 0)),
        (messages.gather, (1, 0)),
        (messages.scatter, (0, 1)),
        (messages.all_gather, (1, 1)),
        (messages.reduce_scatter, (1, 1)),
        (messages.all_to_all, (1, 1)),
    ):
        length = n // size if op in (messages.gather, messages.all_gather) else n
        x = Tensor(np.ones(length), requires_grad=True)
        results = []
        got = sent(lambda op=op, x=x, results=results: results.append(op(x, comm)))
        assert got == (ways[0] * (size - 1), ways[0] * 12 * 8 * (size - 1)), (op, got)
        got = sent(lambda results=results: results[0].sum().backward())
        assert got == (ways[1] * (size - 1), ways[1] * 12 * 8 * (size - 1)), (op, got)


def check_all(comm):
    for name in CASES:
        check_adjoint(comm, name)
    check_forward(comm)
    check_send_and_recv(comm)
    check_messages(comm)
