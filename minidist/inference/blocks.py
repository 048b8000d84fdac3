"""The key-value cache in blocks, so that sequences of any length share one memory.

    blocks    0    1    2    3    4    5         each of, say, 16 positions
    owner     A    B    A    A    -    B
              ╰────────────────────────── table of A: 0, 2, 3; of B: 1, 5; block 4 is free

If each sequence had one array of its largest possible length, most of this memory would stay empty.
With blocks a sequence takes as many free blocks as it needs; its table lists them in order. At most
one block of each sequence is partly empty.

Memory: 2 · layers · blocks · block · groups · d · e bytes, for keys and values.

Source: Kwon et al., "Efficient memory management for large language model serving with
PagedAttention", arXiv 2309.06180, section 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidist.engine.array import Array


class BlockPool:
    """Keys and values of all layers, in ``blocks`` blocks of ``block`` positions."""

    def __init__(
        self,
        layers: int,
        groups: int,
        d: int,
        blocks: int,
        block: int = 16,
        xp: Any = np,
        dtype: Any = np.float32,
    ) -> None:
        if not all(isinstance(one, (int, np.integer)) and one >= 1 for one in (blocks, block)):
            raise ValueError(
                f"BlockPool: {blocks} blocks of {block} positions: both must be integers ≥ 1"
            )
        self.block, self.blocks, self.xp = block, blocks, xp
        # One row for each position of each block, so that an index array can read any sequence.
        self.keys = xp.zeros((layers, blocks * block, groups, d), dtype)
        self.values = xp.zeros_like(self.keys)
        self._free = list(range(blocks))[::-1]

    @property
    def free(self) -> int:
        """The number of free blocks."""
        return len(self._free)

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def needed(self, positions: int) -> int:
        """The number of blocks for ``positions`` positions."""
        return -(-positions // self.block)

    def take(self, positions: int) -> list[int]:
        """A table of blocks for ``positions`` positions. Raises MemoryError if too few are free."""
        if positions < 0:
            raise ValueError(f"BlockPool: {positions} positions")
        count = self.needed(positions)
        if count > self.free:
            raise MemoryError(f"{count} blocks are needed and {self.free} are free")
        return [self._free.pop() for _ in range(count)]

    def give_back(self, table: list[int]) -> None:
        """Free the blocks of a sequence. Raises ValueError for blocks that it cannot own."""
        if twice := set(table) & set(self._free):
            raise ValueError(f"blocks {sorted(twice)} are free already")
        if len(set(table)) < len(table) or not set(table) <= set(range(self.blocks)):
            raise ValueError(f"{table} is no table of one sequence: {self.blocks} different blocks")
        self._free += table[::-1]

    def rows(self, table: list[int], positions: np.ndarray) -> np.ndarray:
        """The rows of ``keys`` and ``values`` with these positions of a sequence."""
        return np.asarray(table)[positions // self.block] * self.block + positions % self.block

    def write(self, layer: int, rows: Array, keys: Array, values: Array) -> None:
        """Store keys and values (n, groups, d) of one layer in these rows (n,)."""
        self.keys[layer, rows] = keys
        self.values[layer, rows] = values
