"""The training loop of the comparison of compressed models.

AdamW with warm-up, a cosine schedule and clipping; lesson 23 uses it, too. Two arguments differ
between recipes: the loss (distillation has a teacher), and a function to call after each step
(pruning sets weights to zero).
"""

from __future__ import annotations

from collections.abc import Callable

from minidist.data.batches import Batch, Batches
from minidist.engine.seeds import draws
from minidist.engine.tensor import Tensor
from minidist.nn.losses import CrossEntropy
from minidist.nn.module import Module
from minidist.optim import AdamW, clip_by_global_norm
from minidist.optim.schedules import cosine, warm_up

Loss = Callable[[Module, Batch], Tensor]
Progress = Callable[[int, int, float], None]  # steps done, steps in all, loss
NOT_DECAYED = ("*bias", "*norm*", "*position")


def cross_entropy(model: Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch."""
    loss = CrossEntropy()
    return loss(model(batch.inputs), batch.targets, batch.count(loss))


def fit(
    model: Module,
    batches: Batches,
    steps: int,
    lr: float,
    loss: Loss = cross_entropy,
    after_step: Callable[[Module, int], None] = lambda model, step: None,
    progress: Progress | None = None,
) -> Module:
    """Train an initialised model in place for ``steps`` steps, and return it in evaluation mode."""
    optimizer = AdamW(
        warm_up(max(1, steps // 20), cosine(lr, steps, final=lr / 20)),
        betas=(0.9, 0.99),
        weight_decay=0.1,
        exclude=NOT_DECAYED,
    )
    optimizer.bind(model.flat.slices)
    model.train()
    for step in range(steps):
        batch = batches[step]
        model.zero_grad()
        with draws(batches.seed, step, batch.positions):
            value = loss(model, batch)
        value.backward()
        clip_by_global_norm(model.flat.grad, 1.0)
        optimizer.step(model.flat.data, model.flat.grad)
        after_step(model, step)
        if progress is not None:
            progress(step + 1, steps, value.item())
    return model.eval()
