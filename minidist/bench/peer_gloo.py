"""The all-reduces of ``minidist bench collectives`` in PyTorch, over gloo.

The bench starts this program once for each rank, with a Python that has torch, before the MPI
ranks. The timing is the same: on data just written, in short turns, each as long as its slowest
rank; the smallest counts. Rank 0 prints {bytes: seconds} as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch
import torch.distributed as dist

SLICE, LIMIT = 0.0005, 3.0  # seconds of a turn at least, and of all turns of a size


def least_seconds(length: int, dtype: torch.dtype, turns: int) -> float:
    """Seconds of one all-reduce, on the slowest rank."""
    tensor = torch.full((length,), float(dist.get_rank() + 1)).to(dtype)
    dist.all_reduce(tensor)
    size = dist.get_world_size()
    if not bool((tensor == size * (size + 1) // 2).all()):
        raise ArithmeticError(f"gloo's all-reduce of {dtype}[{length}] is wrong")
    calls, best, spent = 1, float("inf"), 0.0
    for turn in range(-2, turns):
        dist.barrier()
        seconds = torch.zeros(1, dtype=torch.float64)
        for _ in range(calls):
            tensor.zero_()  # sums of zeros stay finite after many calls
            start = time.perf_counter()
            dist.all_reduce(tensor)
            seconds += time.perf_counter() - start
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        spent += seconds.item()
        if turn < 0:
            calls = max(1, min(2000, int(SLICE * calls / seconds.item())))
        else:
            best = min(best, seconds.item() / calls)
        if turn >= 5 and spent > LIMIT:
            break
    return best


def main() -> None:
    """Measure every size in argv[1]."""
    sizes, dtype, turns = json.loads(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=size)
    itemsize = torch.empty(0, dtype=dtype).element_size()
    found = {}
    for nbytes in sizes:
        length = max(1, nbytes // itemsize)
        found[length * itemsize] = least_seconds(length, dtype, turns)
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
