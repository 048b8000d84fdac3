"""The gradient of each sample of a batch, from one forward and one backward of the whole batch.

A usual backward computes only the sum of the samples' gradients. But the sum happens last: each op
has its input and the gradient of its output for each row, and only its weight's gradient sums over
the rows. So the backward runs as usual, but *without* the weights' gradients
(``defer_weight_gradients``). This leaves callables, one for each use of a weight, which can also
compute the gradient of each sample (``Into.each``):

    forward ▇▇▇▇ backward ▇▇▇▇  norms of all samples ▁  weights' gradients, each sample weighted ▇▇

No sample is computed separately, and no op runs twice. If a weight's gradient is a sum of outer
products, its norms need no gradients either: see outer.py. Bu et al., "Differentially private
optimization on large foundation models", arXiv 2210.00038, section 3, call this book-keeping.

A weight may be used several times (GPT's embedding table), transposed, reshaped or sliced. Samples
must be independent: a layer that mixes them, such as batch norm, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minidist.data.batches import Batch
from minidist.engine.array import Array, module_of, read
from minidist.engine.mode import MODE, defer_weight_gradients, watch
from minidist.engine.tape import Into, Later, Node
from minidist.nn.loss import Loss
from minidist.nn.module import Module, Parameter
from minidist.nn.normalization import BatchNorm
from minidist.ops.operands import by_sample
from minidist.privacy.outer import Outer, sum_of_products

VIEWS = frozenset(("reshape", "transpose", "swapaxes", "getitem", "copy"))  # of a weight

Use = Outer | Array  # of one parameter: outer products, or the gradients (n, *shape)


class NotBySample(TypeError):
    """The gradient of each sample cannot be found for this model; the message says why."""


class Uses:
    """All uses of one parameter in a backward; their sum is each sample's gradient."""

    def __init__(self, parameter: Parameter, uses: list[Use]) -> None:
        self.parameter, self.uses = parameter, uses
        ghost = all(isinstance(use, Outer) and use.thin for use in uses)
        self.dense: Array | None = None if ghost else self.each()

    def each(self) -> Array:
        """The gradient of each sample: (n, *shape)."""
        first, *others = [use.each() if isinstance(use, Outer) else use for use in self.uses]
        for other in others:
            first = first + other
        return first

    def squares(self) -> Array:
        """The squared norm of each sample's gradient: (n,). For several uses
        ‖G + H‖² = ‖G‖² + ‖H‖² + 2⟨G, H⟩."""
        if self.dense is not None:
            return sum_of_products(self.dense, self.dense)
        total: Any = 0
        for k, use in enumerate(self.uses):
            assert isinstance(use, Outer)
            total = total + use.inner(use)
            for other in self.uses[:k]:
                assert isinstance(other, Outer)
                total = total + 2 * use.inner(other)
        return total

    def weighted(self, factors: Array) -> Array:
        """Σ_n factor_n · the gradient of sample n: (*shape)."""
        if self.dense is not None:
            n = len(self.dense)  # (n,) @ (n, size) -> (size,)
            return (factors @ self.dense.reshape(n, -1)).reshape(self.parameter.shape)
        first, *others = [use.weighted(factors) for use in self.uses if isinstance(use, Outer)]
        for other in others:
            first = first + other
        return first


def backward_by_sample(loss: Any, samples: int) -> dict[str, Uses]:
    """Run the backward of ``loss``; returns the uses of each trained parameter, by name.

    Adds nothing to the parameters' gradients. ``loss`` is a sum over the ``samples`` on the first
    axis of every layer's input. Raises NotBySample for an op that cannot separate its samples.
    """
    with collecting(samples) as found:
        loss.backward()
    return {one.name: Uses(one, uses) for one, uses in found.items()}


@contextmanager
def collecting(samples: int) -> Iterator[dict[Parameter, list[Use]]]:
    """Backwards inside the block fill the dictionary with each parameter's uses, and add nothing to
    its gradient."""
    found: dict[Parameter, list[Use]] = {}
    with watch(Rows(samples)), defer_weight_gradients() as queue:
        yield found
    meter = MODE.get().meter
    for later in queue:
        assert isinstance(later, Later)
        parameter, use = to_parameter(later.parent, later.part.each(samples))
        found.setdefault(parameter, []).append(use)
        if meter is not None:
            meter.release(later)


class Rows:
    """Watches a backward: checks that each weight's gradient can be computed for each sample."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def after_forward(self, data: Array, parents: Any, backward: Any) -> None:
        """Nothing to do."""

    def after_backward(self, node: Node, grad: Array, parts: Any) -> list[Any]:
        found = list(parts)
        if _view_of_weight(node):
            return found
        for k, (parent, part) in enumerate(zip(node.parents, parts, strict=True)):
            if parent is None or part is None or not _of_weight(parent):
                continue
            if node.name == "add":
                found[k] = _added(grad, parent.shape)
            elif getattr(part, "each", None) is None:
                raise NotBySample(
                    f"the op {node.name} cannot tell the samples apart in the gradient of "
                    f"{_leaf(parent).name}: "
                    + (
                        "batch norm computes each sample from all others"
                        if node.name == "batch_norm"
                        else "use a layer made of linear, convolution, embedding or norm ops"
                    )
                )
        return found


def _added(grad: Array, shape: tuple[int, ...]) -> Into:
    """The gradient of a weight that was added to (n, ...): a sum over the broadcast axes."""

    def each(samples: int) -> Array:
        by_sample("add", grad, grad.shape, samples)  # refuses others
        rest = grad.shape[1:]
        if len(shape) > len(rest):
            raise NotBySample(f"add: a weight {shape} has an axis for the samples {grad.shape}")
        padded = (1,) * (len(rest) - len(shape)) + shape
        axes = tuple(k + 1 for k, (a, b) in enumerate(zip(rest, padded, strict=True)) if a != b)
        return (grad.sum(axis=axes) if axes else grad).reshape(samples, *shape)

    return Into(lambda out: each(len(grad)).sum(axis=0), each)


def to_parameter(node: Node, each: Any) -> tuple[Parameter, Use]:
    """The parameter that ``node`` is, or is a view of; and the use, in the parameter's shape."""
    use: Use = Outer(each[0], each[1], node.shape) if isinstance(each, tuple) else each
    while node.leaf is None:
        parent = node.parents[0]
        assert parent is not None and node.backward is not None
        if node.name in ("transpose", "swapaxes") and isinstance(use, Outer):
            row = module_of(use.b).zeros((1, 2))  # a column after it, if it transposes
            use = use.transposed if node.backward(row)[0].shape == (2, 1) else use
        else:
            use = through_view(node, parent, use.each() if isinstance(use, Outer) else use)
        node = parent
    return _leaf(node), use


def through_view(node: Node, parent: Node, each: Array) -> Array:
    """The gradients of the array that a view was made of: (n, *view) → (n, *whole).

    The view's own backward, called with the numbers 1, 2, 3, ... in place of a gradient, gives the
    position of each element in the view; elements with 0 are not in the view.
    """
    xp, count = module_of(each), int(np.prod(node.shape))
    assert node.backward is not None
    places = node.backward(xp.arange(1, count + 1).reshape(node.shape))[0]  # (*whole)
    if read((places > 0).sum(), count) != count:
        raise NotBySample(f"{_leaf(node).name}: an index reads an element of it more than once")
    flat = each.reshape(len(each), count)
    taken = flat[:, xp.maximum(places.reshape(-1) - 1, 0)] * (places.reshape(-1) > 0)
    return taken.reshape(len(each), *parent.shape)


def _view_of_weight(node: Node) -> bool:
    """Whether a node is a view of a weight, such as a transposed table."""
    return node.leaf is None and _of_weight(node)


def _of_weight(node: Node) -> bool:
    """Whether a node is a parameter, or a view of one."""
    while node.leaf is None:
        if node.name not in VIEWS or node.parents[0] is None:
            return False
        node = node.parents[0]
    return isinstance(node.leaf(), Parameter)


def _leaf(node: Node) -> Parameter:
    while node.leaf is None:
        assert node.parents[0] is not None
        node = node.parents[0]
    found = node.leaf()
    assert isinstance(found, Parameter)
    return found


# For methods and users


def check_model(who: str, model: Module) -> None:
    """Raise NotBySample for a model with a layer that mixes samples."""
    for path, module in model.named_modules().items():
        if isinstance(module, BatchNorm):
            raise NotBySample(
                f"{who}: layer {path!r} is {module!r}, which computes each sample from all others "
                "of its batch, so that there is no gradient of one sample to clip: use LayerNorm"
            )


def check_loss(who: str, loss: Loss) -> None:
    """Raise ValueError for a loss whose divisor depends on the targets."""
    if loss.counts_values:
        raise ValueError(
            f"{who}: the divisor of {loss!r} depends on the targets of the batch (ignored ones, "
            "weights of classes), so a sample changes the gradients of the others: use a loss "
            "without ignore_index and weight"
        )


def loss_of_samples(loss: Loss, output: Any, batch: Batch) -> Any:
    """The sum of the samples' losses, each the mean over its own targets."""
    return loss(output, batch.targets, targets_a_sample(batch))


def targets_a_sample(batch: Batch) -> int:
    """The number of targets of each sample: 1 for a class, the length of a text."""
    return max(1, int(np.prod(batch.dataset.targets.shape[1:])))


def per_sample_gradients(model: Module, loss: Loss, batch: Batch) -> dict[str, Array]:
    """The gradient of each sample's loss, by parameter: (samples, *shape).

    >>> from minidist.data import Dataset
    >>> from minidist.models import mlp
    >>> from minidist.nn import CrossEntropy
    >>> data = Dataset("two", np.eye(2, 3), np.array([0, 1]), 2)
    >>> each = per_sample_gradients(mlp((3, 2)).init(0), CrossEntropy(), data.batch([0, 1]))
    >>> each["1.weight"].shape
    (2, 3, 2)

    Raises NotBySample for a model that mixes samples, ValueError for a loss that mixes them.
    """
    check_model("per_sample_gradients", model)
    check_loss("per_sample_gradients", loss)
    total = loss_of_samples(loss, model(batch.inputs), batch)
    return {n: uses.each() for n, uses in backward_by_sample(total, len(batch)).items()}
