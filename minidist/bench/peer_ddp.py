"""The same jobs in PyTorch: DistributedDataParallel over gloo.

Started by ``minidist bench scaling`` with a Python that has torch, once a rank. Prints rank 0's
rows as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from minidist.bench.peer_torch import GPT, mlp


def optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "mlp":
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def samples(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    if name == "mlp":
        return torch.randn(count, 784), torch.randint(0, 10, (count,))
    tokens = torch.randint(0, 65, (count, 129))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def main() -> None:
    """Every job, strong and weak."""
    jobs, steps = json.loads(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=size)
    models: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: mlp((784, 1024, 1024, 1024, 10)),
        "gpt": lambda: GPT(65, context=128, width=128, layers=4, heads=4),
    }
    rows = []
    for name, batch in jobs.items():
        model: Any = models[name]()
        if size > 1:
            model = nn.parallel.DistributedDataParallel(model)
        stepper = optimizer(name, model)
        for mode, mine in (("strong", batch // size), ("weak", batch)):
            x, y = samples(name, mine)
            times = torch.zeros(steps, dtype=torch.float64)
            for step in range(-2, steps):
                dist.barrier()
                start = time.perf_counter()
                stepper.zero_grad()
                functional.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
                stepper.step()
                if step >= 0:
                    times[step] = time.perf_counter() - start
            dist.all_reduce(times, op=dist.ReduceOp.MAX)
            seconds = times.tolist()
            rows.append(
                {
                    "model": name,
                    "library": "torch",
                    "ranks": size,
                    "what": f"{mode}, DDP",
                    "seconds": median(seconds),
                    "best_seconds": min(seconds),
                    "samples_per_second": mine * size / median(seconds),
                    "best_samples_per_second": mine * size / min(seconds),
                }
            )
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
