"""``PRIVATE_METHODS`` maps "method/variant" to what makes it: rows of ``minidist compare``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from minidist.parallel.method import Method
from minidist.privacy.dp_sgd import DPSGD

PRIVATE_METHODS: dict[str, Callable[..., Method]] = {
    "private/dp_sgd": partial(DPSGD, sample_clip=1.0, noise=1.0),
}
