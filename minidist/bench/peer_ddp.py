"""The jobs of ``minidist bench scaling`` in PyTorch: DistributedDataParallel over gloo.

The bench starts this program once for each rank, with a Python that has torch. Rank 0 prints its
rows as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from minidist.bench.peer_torch import GPT, mlp


def build(job: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model, and its optimizer in the bench."""
    if job["kind"] == "mlp":
        model = mlp(tuple(job["shape"]))
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model = GPT(*job["shape"])
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def samples(job: dict[str, Any], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    if job["kind"] == "mlp":
        return torch.randn(count, job["shape"][0]), torch.randint(0, job["shape"][-1], (count,))
    vocabulary, context, *_ = job["shape"]
    tokens = torch.randint(0, vocabulary, (count, context + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def main() -> None:
    """Run every job, with strong and weak scaling in turn."""
    jobs, steps = json.loads(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", rank=rank, world_size=size)
    rows = []
    for name, job in jobs.items():
        local, optimizer = build(job)
        model: Any = nn.parallel.DistributedDataParallel(local) if size > 1 else local
        parts = {
            mode: samples(job, mine)
            for mode, mine in (("strong", job["batch"] // size), ("weak", job["batch"]))
        }
        found = torch.zeros(2, len(parts), steps, dtype=torch.float64)
        for step in range(-2, steps):
            for index, (x, y) in enumerate(parts.values()):
                dist.barrier()
                wall, cpu = time.perf_counter(), time.process_time()
                optimizer.zero_grad()
                functional.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
                optimizer.step()
                if step >= 0:
                    found[0, index, step] = time.perf_counter() - wall
                    found[1, index, step] = time.process_time() - cpu
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        for index, (mode, (x, _)) in enumerate(parts.items()):
            rows.append(
                {
                    "model": name,
                    "library": "torch",
                    "ranks": size,
                    "what": f"{mode}, DDP",
                    "samples": len(x) * size,
                    "times": found[0, index].tolist(),
                    "cpu": found[1, index].tolist(),
                }
            )
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
