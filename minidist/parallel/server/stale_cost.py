"""The cost of a step of a stale parameter server, by the formula of ``stale_parameter_server.py``.

It is exact for uneven ranges and shards too. The order of messages depends on the machine, so the
time has no formula.
"""

from __future__ import annotations

from minidist.comm.machine import Machine
from minidist.data.batches import Batch
from minidist.parallel.method import StepCost
from minidist.parallel.model_costs import frozen_count, largest_saved, training_seconds
from minidist.parallel.server.key_ranges import KeyRanges


def stale_cost(method: KeyRanges, batch: Batch, machine: Machine) -> StepCost:
    """The cost of ``step``: a run of one batch."""
    ranks, p, e = range(method.comm.size), method.comm.size, method.itemsize
    messages, nbytes, busy = [0 for _ in ranks], [0 for _ in ranks], [0.0 for _ in ranks]
    parameters, gradients, state = [0 for _ in ranks], [0 for _ in ranks], [0 for _ in ranks]
    activations = [0 for _ in ranks]
    for index, rank in enumerate(method.servers):
        own = (method.keys[index].stop - method.keys[index].start) * e
        state[rank] = len(method.optimizer.slots) * own
        if p > 1:
            clients = [worker for worker in method.workers if worker != rank]
            parameters[rank] += own
            gradients[rank] += own + method.pushes.arriving_bytes(index)
            messages[rank] += len(method.workers)
            nbytes[rank] += len(clients) * own
            decoding = len(clients) * method.pushes.decode_flops(index)
            busy[rank] += 0 if rank in method.workers else machine.compute(decoding, rank)
    messages[method.servers[0]] += p - 1  # the losses
    nbytes[method.servers[0]] += (p - 1) * 8
    for index, rank in enumerate(method.workers):
        clients = method.clients_of(rank)
        if p > 1:
            messages[rank] += len(method.servers) + len(clients)
            nbytes[rank] += 16 * len(method.servers)
            nbytes[rank] += sum(method.pushes.nbytes(server) for server in clients)
        parts = batch.shard(index, len(method.workers)).microbatches(method.microbatches)
        parameters[rank] += (method.psi + frozen_count(method.whole)) * e
        gradients[rank] += method.psi * e + method.pushes.kept_bytes(clients)
        busy[rank] += training_seconds(method.whole, parts, machine, rank)
        busy[rank] += machine.compute(method.pushes.encode_flops(clients), rank)
        activations[rank] = largest_saved(method.whole, parts, e, method.loss)
    return StepCost(
        messages=messages,
        nbytes=nbytes,
        peak_bytes={
            "parameters": parameters,
            "gradients": gradients,
            "optimizer": state,
            "activations": activations,
        },
        busy=busy,
        seconds=None if p > 1 else busy[0],
    )
