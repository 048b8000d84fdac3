"""Send only the largest numbers, and forget nothing: marks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minidist.exercises import collective
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.single import compare

TITLE = "Top-k with error feedback"
MINUTES = 50
FUNCTIONS = ("TopK",)
MARKS = {"first step": 3, "error feedback": 3, "k numbers": 2, "ranks agree": 1, "untouched": 1}
FORBIDDEN = collective.FORBIDDEN
STEPS = 4


def cases(seed: int) -> Iterator[Case]:
    for p, length, k in ((1, 10, 3), (2, 10, 3), (3, 12, 1), (4, 9, 9), (4, 30, 5), (5, 8, 2)):
        yield Case(p, seed, settings={"length": length, "k": k})
    yield Case(2, seed, "mpi", {"length": 10, "k": 3})


def prepare(rank: int, case: Case) -> np.ndarray:
    draw = np.random.default_rng([case.seed, rank])
    # Different absolute values everywhere: which k are largest is never a matter of taste.
    order = draw.permuted(np.tile(np.arange(1, case["length"] + 1), (STEPS, 1)), axis=1)
    return order * draw.choice([-1.0, 1.0], order.shape) + rank / 64 + draw.random(order.shape) / 32


def exchange(comm: Any, values: Any, positions: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Everybody's pairs, each sent to all others."""
    values = np.ascontiguousarray(values, np.float64)
    positions = np.ascontiguousarray(positions, np.int64)
    found: list[Any] = [None] * comm.size
    found[comm.rank] = (values, positions)
    for step in range(1, comm.size):
        to, source = (comm.rank + step) % comm.size, (comm.rank - step) % comm.size
        length = np.zeros(1, np.int64)
        comm.sendrecv(np.array([values.size]), to, length, source)
        got = np.zeros(int(length[0])), np.zeros(int(length[0]), np.int64)
        comm.sendrecv(values, to, got[0], source)
        comm.sendrecv(positions, to, got[1], source)
        found[source] = got
    return found


def run(comm: Any, answer: Any, case: Case, grads: np.ndarray) -> dict[str, Any]:
    lengths: list[int] = []

    def watched(comm: Any, values: Any, positions: Any) -> Any:
        lengths.append(int(np.size(values)))
        return exchange(comm, values, positions)

    method = answer.TopK(comm, watched, case["k"], case["length"])
    before = grads.copy()
    got = [np.array(method.average(grad), copy=True) for grad in grads]
    return {"got": got, "lengths": lengths, "untouched": bool((before == grads).all())}


def simulate(case: Case, slip: str = "") -> list[np.ndarray]:
    """What every step's average should be; ``slip`` names a known mistake."""
    p, k = case.ranks, case["k"]
    grads = [prepare(rank, case) for rank in range(p)]
    residual = [np.zeros(case["length"]) for _ in range(p)]
    found = []
    for step in range(STEPS):
        total = np.zeros(case["length"])
        for rank in range(p):
            corrected = grads[rank][step] + (0 if slip == "forgotten" else residual[rank])
            chosen = grads[rank][step] if slip == "by the gradient" else corrected
            key = -chosen if slip == "signed" else -np.abs(chosen)
            positions = np.argsort(key, kind="stable")[:k]
            if slip == "overwritten":
                total[positions] = 0
            total[positions] += corrected[positions]
            residual[rank] = (grads[rank][step] if slip == "last rest" else corrected).copy()
            if slip != "kept":
                residual[rank][positions] = 0
        found.append(total if slip == "sum" else total / p)
    return found


SLIPS = {
    "forgotten": "what is left out is lost: keep it, and add it to the next gradient",
    "signed": "the largest by *absolute* value are to be sent: -5 is larger than 3",
    "kept": "the residual must be 0 where something was sent, or it is sent again and again",
    "overwritten": "where several ranks send the same position, their values are to be added: "
    "total[positions] = values keeps the last one alone",
    "by the gradient": "the k largest of gradient + residual are to be sent, not of the gradient",
    "last rest": "the residual is what was left out of gradient + residual, not of the gradient "
    "alone: older rests are lost",
    "sum": "this is the sum over the ranks, and the average is wanted",
}


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    right = simulate(case)
    slips = {why: simulate(case, slip) for slip, why in SLIPS.items()}
    for step in (0, STEPS - 1):
        wrong = None
        for number, rank in enumerate(ranks):
            hints = {why: values[step] for why, values in slips.items()}
            wrong = compare(
                f"the average of step {step + 1} on rank {number}",
                rank["got"][step],
                right[step],
                hints,
            )
            if wrong:
                break
        yield ("first step" if step == 0 else "error feedback"), wrong
    lengths = {length for rank in ranks for length in rank["lengths"]}
    yield (
        "k numbers",
        (
            f"{sorted(lengths - {case['k']})[0]} numbers are sent, and k is {case['k']}"
            if lengths - {case["k"]}
            else "nothing is sent"
            if not lengths
            else None
        ),
    )
    differ = [number for number, rank in enumerate(ranks) if rank["got"] != ranks[0]["got"]]
    yield "ranks agree", f"ranks {differ} have other averages than rank 0" if differ else None
    yield (
        "untouched",
        (None if all(rank["untouched"] for rank in ranks) else "the gradient itself was changed"),
    )
