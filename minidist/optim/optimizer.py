"""What every optimizer is: a rule that moves a 1-D array against its gradient.

``step(data, grad)`` takes any 1-D slice of the flat parameters and the same slice of the
gradients. Serial training passes the whole; a ZeRO rank or a server passes the part it owns, and
then keeps state for that part alone. Because each rule works element by element, parts stepped
apart equal the whole.
"""

from __future__ import annotations

from collections.abc import Callable

from minidist.array import Array, module_of

LearningRate = float | Callable[[int], float]


class Optimizer:
    """Base of all: holds the learning rate, the step count and the state arrays.

    ``lr`` is a number, or a function from the step (0, 1, ...) to a number: a schedule.
    ``state`` maps names to arrays as long as the data stepped; ``slots`` names them beforehand,
    so that memory can be predicted.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, lr: LearningRate) -> None:
        self.lr = lr
        self.steps = 0
        self.state: dict[str, Array] = {}

    def step(self, data: Array, grad: Array) -> None:
        """Move ``data`` one step against ``grad``, both 1-D and of one shape, in place."""
        if data.shape != grad.shape or data.ndim != 1:
            raise ValueError(f"step: data {data.shape} and grad {grad.shape} must be 1-D and equal")
        for name in self.slots:
            if name not in self.state:
                self.state[name] = module_of(data).zeros_like(data)
            elif self.state[name].shape != data.shape:
                raise ValueError(
                    f"step: this optimizer has state for {self.state[name].size} parameters and "
                    f"was given {data.size}: use one optimizer for each array that is stepped"
                )
        lr = self.lr(self.steps) if callable(self.lr) else self.lr
        self.steps += 1
        self.update(data, grad, lr)

    def update(self, data: Array, grad: Array, lr: float) -> None:
        """The rule itself, in place; each optimizer defines it."""
        raise TypeError(f"{type(self).__name__} does not define update()")

    def state_bytes(self) -> int:
        """Bytes of state held now."""
        return sum(array.nbytes for array in self.state.values())
