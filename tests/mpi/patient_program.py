"""Runs under mpiexec: servers wait for slow workers, and are asked how busy they were meanwhile."""

import time

import numpy as np

from minidist import launch
from minidist.comm.comm import ANY
from minidist.data import Batches
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.parallel import (
    BackupWorkers,
    ElasticAveraging,
    ParameterServer,
    StaleParameterServer,
)
from tests.parallel.checks import Setting

SERVERS = (ParameterServer, StaleParameterServer, BackupWorkers, ElasticAveraging)


def receive_from_anyone(comm):
    message = np.zeros(3)
    if comm.rank:
        time.sleep(0.5)
        comm.send(message + comm.rank, 0, tag=4)
    else:
        sources = {comm.recv(message, ANY, tag=4) for _ in range(comm.size - 1)}
        assert sources == set(range(1, comm.size)), sources


def train(comm, kind):
    setting = Setting()
    method = kind(mlp(setting.widths), CrossEntropy(), setting.optimizer(), comm)
    compute = method.forward_backward

    def slow(batch):
        time.sleep(0.3)
        return compute(batch)

    method.forward_backward = slow
    for step in range(2):
        method.step(Batches(setting.dataset, setting.batch)[step])


def busy(function, comm, *args):
    """The share of the time in which this process had a core."""
    comm.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    function(comm, *args)
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


def main(comm):
    shares = {"receive from anyone": busy(receive_from_anyone, comm)}
    for kind in SERVERS:
        shares[kind.__name__] = busy(train, comm, kind)
    return shares


for name, share in launch(main)[0].items():
    assert share < 0.2, (
        f"{name}: the server kept a core busy {share:.0%} of the time that it waited"
    )
