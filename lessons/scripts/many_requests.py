"""Answer many requests on several ranks: replicas of the model, one queue in front.

    mpirun -n 4 python lessons/scripts/many_requests.py
    minidist trace lessons/scripts/many_requests.py --mesh dp=2,tp=2

Without mpirun the four ranks run in this one process. The model is trained for a few steps only,
so do not expect Shakespeare.
"""

import argparse
from functools import partial
from math import prod

from minidist import launch
from minidist.data import Batches, shakespeare
from minidist.inference import Arrivals, Request, serve
from minidist.models import gpt
from minidist.nn import CrossEntropy
from minidist.optim import Adam
from minidist.parallel import DataParallel
from minidist.parallel.mesh.mesh import parse

STEPS, PROMPTS, LETTERS = 30, ("HAMLET:", "To be", "My lord", "KING", "The ", "What"), 40


def main(comm, mesh):
    training, _ = shakespeare(32, stride=1)
    method = DataParallel(gpt(63, 64, 32, 2, 2), CrossEntropy(), Adam(3e-3), comm)
    batches = Batches(training, 32)
    for step in range(STEPS):
        loss = method.step(batches[step])
    model = gpt(63, 64, 32, 2, 2).init().load(method.parameters())

    requests = [
        Request(tuple(training.encode(prompt).tolist()), LETTERS, 0.8, 20, seed)
        for seed, prompt in enumerate(PROMPTS * 4)
    ]
    arriving = {0: requests[:12], 5: requests[12:]}  # half of them come later

    def source(round):
        return Arrivals(arriving.get(round, ())) if round <= 5 else None

    before = comm.trace.sent.nbytes
    answers, refused = serve(comm, model, source, at_once=4, mesh=mesh)
    sent = comm.trace.sent.nbytes - before
    if comm.rank == 0:
        text = training.decode(answers[0].tokens)
        print(f"loss {loss:.2f} after {STEPS} steps; {PROMPTS[0]}{text!r}")
        print(f"{len(answers)} answered, {len(refused)} refused; rank 0 sent {sent} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="answer many requests on several ranks")
    parser.add_argument(
        "--mesh", default="", help="axes dp, pp and tp; every rank a replica if not"
    )
    asked = parser.parse_args().mesh
    mesh = parse(asked) if asked else None
    launch(partial(main, mesh=mesh), ranks=prod(mesh.values()) if mesh else 4)
