"""Distillation: a small model learns the outputs of a large one.

    teacher's logits z_t:  shirt 4.1   coat 3.6   bag -2 ...      the label contains only: shirt

    L = (1 - λ) · CE(y, softmax(z)) + λ · T² · CE(softmax(z_t / T), softmax(z / T))

The teacher's probabilities contain more than the label: this shirt resembles a coat, but not a bag.
The temperature T makes small probabilities larger, so that they have an effect. The gradient of the
second term falls with 1/T²; the factor T² corrects this. With λ = 0 this is ordinary training.

Both terms are divided by ``count``, the number of targets in the global batch, as in all losses. A
step needs one more forward, of the teacher, on the same (augmented) images.

Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531,
section 2.
"""

from __future__ import annotations

import math
from typing import Any

from minidist import ops
from minidist.data.batches import Batch
from minidist.engine.tensor import Tensor
from minidist.nn.cross_entropy import CrossEntropy
from minidist.nn.evaluating import as_in_evaluation
from minidist.nn.module import Module
from minidist.ops.operands import ShapeError


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float, count: float) -> Tensor:
    """T² · Σ -softmax(z_t / T) · log softmax(z / T) / count; both logits (..., classes).

    The gradient with respect to z is T (softmax(z / T) - softmax(z_t / T)) / count. Raises
    ShapeError for logits of different shapes, ValueError for a temperature of 0 or below.
    """
    if logits.shape != teacher.shape:
        raise ShapeError(
            f"soft_cross_entropy: the student's logits are {logits.shape} and the teacher's "
            f"{teacher.shape}: both must have the same classes"
        )
    _check(temperature)
    p = ops.softmax(teacher.detach() / temperature)
    return -(p * ops.log_softmax(logits / temperature)).sum() * (temperature**2 / max(1, count))


class Distillation:
    """The loss of a student on a batch: ``loss(student, batch)``, a scalar.

    ``weight`` is λ, the weight of the teacher's term, in [0, 1]; ``temperature`` is T.
    """

    def __init__(self, teacher: Module, temperature: float = 4.0, weight: float = 0.9) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"Distillation: the teacher's share must be in [0, 1], not {weight}")
        _check(temperature)
        self.teacher = teacher
        self.temperature, self.weight = temperature, weight

    def __call__(self, student: Module, batch: Batch) -> Tensor:
        logits: Any = student(batch.inputs)
        count = batch.count(CrossEntropy())
        hard = ops.cross_entropy(logits, batch.targets, count)
        with as_in_evaluation(self.teacher):
            taught = self.teacher(batch.inputs)
        soft = soft_cross_entropy(logits, taught, self.temperature, count)
        return (1 - self.weight) * hard + self.weight * soft


def _check(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"distillation: the temperature must be above 0 and finite, not {temperature}"
        )
