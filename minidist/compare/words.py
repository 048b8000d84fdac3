"""Explanations of the words in the table, for readers who see them for the first time.

``COLUMNS`` explains the headings, ``FAMILIES`` the families, ``VARIANTS`` the rows of a family.
"""

from __future__ import annotations

from typing import Any

COLUMNS = {
    "loss": "the model's error on the last batch: smaller is better",
    "accuracy": "share of the test images, or letters, that are guessed right after the last step",
    "loss gap": "largest relative difference to serial's loss, over all steps",
    "parameter gap": "the same for the parameters; for an exact method it is only rounding, which "
    "grows in a long training",
    "KB sent a step": "by the rank that sends most, on average",
    "messages": "sent in a step, by the rank that sends most, on average",
    "MB held": "peak of the rank that holds most: parameters, gradients, optimizer state, "
    "activations (arrays of the forward that the backward needs)",
    "idle": "share of the ranks' time in which they do not compute, but send or wait",
    "ms a step": "of the slowest rank, median of all steps",
}
SIGNS = {
    "(=)": "the prediction of the method's formula is equal to this number, on every rank",
    "(other)": "the prediction; of seconds and idle by simulation, with a core for each rank",
}

FAMILIES = {
    "serial": "one rank, without communication; all others are compared with it",
    "data_parallel": "each rank has the whole model, and a part of each batch; gradients are "
    "summed",
    "parameter_server": "one rank has the parameters (the server); the others fetch them and send "
    "gradients",
    "zero": "as data parallel, but each rank keeps only a part (a shard) of these arrays:",
    "compression": "data parallel that sends fewer bytes than the gradient has",
    "local_sgd": "each rank trains alone for some steps; then the models are averaged",
    "gossip": "after each step a rank averages its model with its neighbours only",
    "easgd": "elastic averaging: models are pulled towards a common one",
    "pipeline": "each rank has some of the layers (a stage); a batch passes through in parts "
    "(microbatches)",
    "tensor": "each layer is cut, and each rank has a part of it",
    "mesh": "several at once: the ranks form a grid, with one method along each axis",
    "private": "data parallel whose model does not reveal whether a sample was in the data",
    "federated": "each client trains on its own samples for some steps; models are averaged",
    "own": "your own methods",
}
VARIANTS = {
    "data_parallel/per_parameter": "one sum for each parameter's gradient",
    "data_parallel/ring": "one sum of all gradients, in messages around a ring of ranks",
    "data_parallel/symmetric": "sums in memory that all ranks share, without messages",
    "data_parallel/overlapped": "sums of a part (a bucket) while the backward continues",
    "parameter_server/bsp": "bulk synchronous: every step waits for all workers",
    "parameter_server/bsp_sharded": "as bsp, with two servers, each with half of the model",
    "parameter_server/bsp_colocated": "as bsp; every rank is a server of a part, and a worker",
    "parameter_server/ssp": "stale synchronous: a worker may be two steps ahead of the slowest",
    "parameter_server/ssp_sharded": "as ssp, with two servers, each with half of the model",
    "parameter_server/ssp_colocated": "as ssp; every rank is a server of a part, and a worker",
    "parameter_server/async": "asynchronous: no worker waits for another",
    "parameter_server/async_sharded": "as async, with two servers, each with half of the model",
    "parameter_server/async_colocated": "as async; every rank is a server of a part, and a worker",
    "parameter_server/backup": "the slowest worker's gradient of each step is not waited for",
    "zero/1": "optimizer state",
    "zero/2": "optimizer state and gradients",
    "zero/3": "optimizer state, gradients, and parameters, gathered block by block when needed",
    "compression/float16": "in 16 bits",
    "compression/bfloat16": "in 16 bits, with float32's range",
    "compression/top_k": "the largest 1 %; the rest is added to the next gradient",
    "compression/random_k": "10 % of the elements, chosen at random in each step",
    "compression/sign": "one bit an element",
    "compression/qsgd": "rounded at random to 8 bits",
    "compression/power_sgd": "two thin matrices whose product is close to the gradient",
    "local_sgd/average": "the plain average",
    "local_sgd/diloco": "DiLoCo: an optimizer steps with the average of the ranks' changes",
    "gossip/ring": "the two neighbours on a ring",
    "gossip/exponential": "a rank 1, 2, 4, ... places away, in turn",
    "easgd/sync": "all ranks at the same step",
    "pipeline/naive": "one stage works while all others wait",
    "pipeline/gpipe": "all microbatches forward, then all backward",
    "pipeline/1f1b": "alternates forward and backward, so fewer activations are kept",
    "pipeline/interleaved": "two parts of the model on each rank: less waiting, more messages",
    "pipeline/zero_bubble_h1": "gradients of weights are computed when a rank would wait",
    "pipeline/zero_bubble_v": "as zero bubble h1; two parts on each rank, down the ranks and up",
    "pipeline/pipedream": "stages step after each microbatch, without waiting, with stale weights",
    "tensor/parallel": "each layer's columns or rows",
    "tensor/sequence": "each layer's columns or rows; activations between them along the sequence",
    "private/dp_sgd": "each sample's gradient is clipped, and noise is added to the sum",
    "federated/average": "half of eight clients in each round",
    "federated/prox": "clients are pulled back towards the common model",
    "federated/private": "each client's change is clipped, and noise is added to the sum",
    "mesh/every_axis": "data, pipeline and tensor parallel",
    "mesh/sequence": "data, pipeline and tensor parallel, cut along the sequence too",
}


def explained(rows: list[dict[str, Any]], headings: list[str]) -> list[tuple[str, str]]:
    """(word, meaning) of all words in the table of these rows, in the table's order."""
    found = [(heading, COLUMNS[heading]) for heading in headings] + [*SIGNS.items()]
    families = list(dict.fromkeys(row["method"] for row in rows))
    for family in families:
        found.append((title(family), FAMILIES[family]))
        for row in rows:
            meaning = VARIANTS.get(f"{family}/{row['variant']}")
            if row["method"] == family and meaning:
                found.append((f"  {variant(row)}", meaning))
    return found


def title(family: str) -> str:
    """A family's heading: "data parallel"."""
    return {"zero": "ZeRO", "local_sgd": "local SGD", "easgd": "EASGD"}.get(
        family, family.replace("_", " ")
    )


def variant(row: dict[str, Any]) -> str:
    """A row's name in its family: "top k"."""
    name = str(row["variant"] or "")
    if row["method"] == "zero":
        return f"stage {name}"
    return name if row["method"] == "own" else name.replace("_", " ")


def label(row: dict[str, Any]) -> str:
    """A row's whole name: "pipeline gpipe"."""
    return f"{title(row['method'])} {variant(row)}".strip()
