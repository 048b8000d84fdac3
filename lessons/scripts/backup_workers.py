"""Train synchronously without waiting for the slowest: one gradient of each step may be late.

    mpirun -n 4 python lessons/scripts/backup_workers.py

Without mpirun the four ranks run in this one process.
"""

from minidist import launch
from minidist.data import Batches, fashion_mnist
from minidist.inspect import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import BackupWorkers

STEPS = 640  # eight epochs of the 10,000 images; the slowest third is dropped


def main(comm):
    training, test = fashion_mnist()
    batches = Batches(training, size=128, seed=0)
    method = BackupWorkers(mlp(), CrossEntropy(), SGD(0.05, momentum=0.9), comm, backups=1)
    for start in range(0, STEPS, 40):
        losses = method.train([batches[step] for step in range(start, start + 40)])
        if comm.rank == 0:
            print(f"step {start:4}  loss {losses[0]:.4f}")
    parameters = method.parameters()  # call it on every rank; rank 0 uses the result
    if comm.rank == 0:  # the server
        reached = accuracy(mlp().init().load(parameters), test)
        print(f"test accuracy {reached:.1%}; {method.dropped} gradients were late and dropped")


if __name__ == "__main__":
    launch(main, ranks=4)
