"""Train with differential privacy: no single image changes much of what is learned.

    mpirun -n 4 python lessons/scripts/dp_sgd.py

Without mpirun the four ranks run in this one process. Any number of ranks learns the same.
"""

from minidist import launch
from minidist.data import fashion_mnist
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.privacy import DPSGD, PoissonBatches, noise_for

RATE, STEPS = 0.0256, 800  # each image is in a batch with this probability: about 256 of 10,000
EPSILON, DELTA = 3.0, 1e-5  # what may be given away about any one image
SEED = 0  # whoever knows it can subtract the noise: for real data, secrets.randbits(128)


def main(comm):
    training, test = fashion_mnist()
    noise = noise_for(EPSILON, DELTA, RATE, STEPS)
    batches = PoissonBatches(training, RATE, SEED)
    method = DPSGD(
        *(mlp((784, 64, 10)), CrossEntropy(), SGD(0.5), comm, SEED),
        sample_clip=1.0,  # the norm of a sample's gradient
        noise=noise,  # in units of the clip
        rate=RATE,
        epsilon=EPSILON,  # a step beyond this is refused
        delta=DELTA,
    )
    for step in range(STEPS):
        loss = method.step(batches[step])
        if comm.rank == 0 and step % 200 == 0:
            print(f"step {step:4}  loss {loss:.4f}  ε so far {method.epsilon_spent:.2f}")
    _, reached = method.evaluate(test)  # every rank must call it
    if comm.rank == 0:
        spent = f"ε = {method.epsilon_spent:.2f} at δ = {DELTA:g}"
        print(f"noise {noise:.2f}, {spent}; test accuracy {reached:.1%}")


if __name__ == "__main__":
    launch(main, ranks=4)
