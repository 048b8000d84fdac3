"""A program of mpi4py's own that takes our collectives and methods: ``Comm.from_mpi``.

Run by test_from_mpi.py. Nothing here is started by ``launch``.
"""

import numpy as np
from mpi4py import MPI

from minidist import Comm
from minidist.collectives import all_reduce, ring
from minidist.comm.errors import CommError
from minidist.data import Batches, fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel, Serial

world = MPI.COMM_WORLD
comm = Comm.from_mpi(world)
assert (comm.rank, comm.size) == (world.Get_rank(), world.Get_size())

array = np.full(1000, comm.rank + 1.0)
ring.all_reduce(Comm.from_mpi(MPI.COMM_WORLD), array)
assert (array == comm.size * (comm.size + 1) / 2).all(), array[:3]
assert comm.trace.sent.messages == 2 * (comm.size - 1), "the same Comm again, which counts"

# Half of the ranks, in a communicator of the user's, and a message of theirs meanwhile.
half = world.Split(world.Get_rank() % 2, -world.Get_rank())
theirs = half.Irecv([bytearray(8), MPI.BYTE], MPI.ANY_SOURCE, MPI.ANY_TAG)
ours = Comm.from_mpi(half)
number = np.array([float(world.Get_rank())])
all_reduce(ours, number)
assert number[0] == sum(range(world.Get_rank() % 2, world.Get_size(), 2)), number
assert not theirs.Test(), "our message was received by the user's call"
half.Send([bytearray(8), MPI.BYTE], half.Get_rank())
theirs.Wait()
ours.close()
again = Comm.from_mpi(half)
assert again is not ours and again.size == half.Get_size()
for _ in range(3000):  # MPICH has 2,048 communicators
    assert Comm.from_mpi(half) is again
again.close()
half.Free()

training, _ = fashion_mnist()
batch = Batches(training, 30, 0)[0]
method = DataParallel(mlp((784, 8, 10)), CrossEntropy(), SGD(0.1), comm)
alone = Serial(mlp((784, 8, 10)), CrossEntropy(), SGD(0.1), Comm.from_mpi(MPI.COMM_SELF))
assert abs(method.step(batch) - alone.step(batch)) < 1e-5

wrong = {
    "mpi4py's Intracomm: pass Comm.from_mpi(...)": lambda: ring.all_reduce(world, array),
    "all_reduce by ring needs a Comm": lambda: ring.all_reduce(None, array),
    "DataParallel needs a Comm of minidist, and": lambda: DataParallel(
        mlp((784, 8, 10)), CrossEntropy(), SGD(0.1), world
    ),
    "one of minidist's already": lambda: Comm.from_mpi(comm),
    "needs a communicator of mpi4py, not int": lambda: Comm.from_mpi(3),
    "this rank is in no group": lambda: Comm.from_mpi(MPI.COMM_NULL),
}
for text, call in wrong.items():
    try:
        call()
    except CommError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error: {text}")
comm.close()
world.Barrier()
if world.Get_rank() == 0:
    print(f"{world.Get_size()} ranks: all is well")
