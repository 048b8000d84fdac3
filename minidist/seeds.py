"""Random numbers keyed by what they are for, never by rank or by order of calls.

Two ranks that ask for the same thing draw the same numbers, and a rank that asks for part of the
model draws exactly the part that serial training has. That is why a pipeline stage, a shard or a
replica can be built alone. The generator is counter-based (Philox: Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC'11), so a key is all the state there is.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *what: object) -> np.random.Generator:
    """A generator for one purpose, the same wherever and whenever it is made.

    >>> generator(0, "shuffle", 3).integers(100) == generator(0, "shuffle", 3).integers(100)
    True
    """
    name = "/".join(str(part) for part in (seed, *what))
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
