"""A trillion parameters on 64 stages, simulated: it must take at most a gigabyte."""

import resource
import time

from minidist.comm.machine import profile
from minidist.data import Batches, Dataset
from minidist.engine import phantom
from minidist.engine.array import work
from minidist.models import gpt
from minidist.nn import CrossEntropy
from minidist.optim import Adam
from minidist.parallel import Pipeline, simulate

STAGES, MICROBATCHES = 64, 64


def make(comm):
    model = gpt(51200, 2048, 25600, 128, 160)
    options = {"schedule": "1f1b", "microbatches": MICROBATCHES}
    return Pipeline(model, CrossEntropy(), Adam(), comm, **options)


if __name__ == "__main__":
    tokens = phantom.empty((MICROBATCHES, 2048), "int64")
    dataset = Dataset("shapes", tokens, tokens, 51200)
    start = time.process_time()
    found = simulate(make, Batches(dataset, MICROBATCHES), STAGES, profile("h100"))
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"a step takes {found.step_seconds:.1f} s, {found.idle_fraction:.1%} idle; simulated in "
        f"{time.process_time() - start:.1f} s of processor time and {megabytes:.0f} MB, "
        f"{work.kernels:,} kernels"
    )
    assert megabytes < 1000
    # (p - 1)/(m + p - 1), but stages are uneven: the first embeds, the last has the head
    assert abs(found.idle_fraction - (STAGES - 1) / (MICROBATCHES + STAGES - 1)) < 0.1
