"""Ops that send: their gradients across ranks, their messages, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from minidist import launch
from minidist.engine.tensor import Tensor
from minidist.ops import ShapeError
from minidist.ops import collectives as messages
from tests.ops.collectives_checks import CASES, check_adjoint, check_all


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_gradients_and_messages(ranks):
    launch(check_all, ranks)


def test_a_gradient_that_is_not_summed_is_rejected(monkeypatch):
    monkeypatch.setattr(messages, "total", lambda comm, array: array.copy())
    for name in ("copy_to", "reduce_from"):
        with pytest.raises(AssertionError, match=name):
            launch(lambda comm, name=name: check_adjoint(comm, name), 3)


def test_a_conjugate_mistaken_is_rejected(monkeypatch):
    """gather where each rank goes on in its own way needs the gradients summed."""
    monkeypatch.setitem(
        CASES,
        "all_gather",
        (*CASES["all_gather"][:2], lambda x, c: messages.gather(x, c, 0), CASES["all_gather"][3]),
    )
    with pytest.raises(AssertionError, match="all_gather"):
        launch(lambda comm: check_adjoint(comm, "all_gather"), 2)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (lambda c: messages.all_to_all(np.ones((3, 2)), c), r"all_to_all: axis 0 of \(3, 2\)"),
        (lambda c: messages.scatter(np.ones(3), c, 1), r"scatter: \(3,\) has no axis 1"),
        (lambda c: messages.scatter(np.ones(3), c, 0, [1, 1]), r"lengths \[1, 1\] do not cut"),
        (
            lambda c: messages.gather(Tensor(np.ones(3)), c, 0, [2, 2]),
            r"does not fit the lengths of the parts",
        ),
    ],
)
def test_what_does_not_fit_is_refused(op, message):
    with pytest.raises(ShapeError, match=message):
        launch(op, 2)
