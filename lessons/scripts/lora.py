"""Adapt a trained GPT to another text with LoRA: only a few added weights are trained and sent.

    mpirun -n 2 python lessons/scripts/lora.py

Without mpirun the two ranks run in this one process. The GPT is trained for a few steps only.
"""

from minidist import launch
from minidist.compress import adapt, adapted_names, merge
from minidist.data import Batches, shakespeare
from minidist.data.text import shakespeare_text
from minidist.data.tokens import token_windows
from minidist.inspect import mean_loss
from minidist.models import gpt
from minidist.nn import CrossEntropy
from minidist.optim import Adam
from minidist.parallel import DataParallel

STEPS, RANK, ALPHA = 40, 4, 8.0


def make():
    return gpt(63, 32, 32, 2, 2)


def main(comm):
    training, _ = shakespeare(32, stride=1)
    first = DataParallel(make(), CrossEntropy(), Adam(3e-3), comm)
    for step in range(STEPS):
        first.step(Batches(training, 32)[step])
    trained = first.parameters()

    shouted = training.encode(shakespeare_text()[:200_000].upper())  # another text: in capitals
    other = token_windows("capitals", shouted, 32, 63, stride=7)
    model = adapt(make(), RANK, ALPHA)
    method = DataParallel(model, CrossEntropy(), Adam(1e-2), comm)
    method.load_parameters(method.parameters() | adapted_names(model, trained))
    before = comm.trace.sent.nbytes
    for step in range(STEPS):
        method.step(Batches(other, 32)[step])
    sent = (comm.trace.sent.nbytes - before) // STEPS
    adapted = method.parameters()
    if comm.rank == 0:
        some = token_windows("capitals", shouted, 32, 63, stride=2000)
        lost = [mean_loss(one, CrossEntropy(), some) for one in (
            make().init().load(trained), merge(make(), adapted, ALPHA))]  # fmt: skip
        size = model.flat.size
        print(f"trained {size} of {size + sum(a.size for a in trained.values())} weights")
        print(f"another text: {lost[0]:.2f} nats, after adapting {lost[1]:.2f}")
        print(f"rank 0 sent {sent} bytes a step")


if __name__ == "__main__":
    launch(main, ranks=2)
