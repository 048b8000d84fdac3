"""Boxes of shared memory lie in cache lines as the array does, wherever that is on each rank."""

from __future__ import annotations

import numpy as np
import pytest

from minidist.collectives.shared import cross_memory, shared_memory
from minidist.collectives.shared.shared_memory import LINE, SEGMENT
from minidist.comm import CommError, LocalWorld, launch
from tests.mutants import Mutant

HERE = "minidist.collectives.shared.shared_memory"


def placed(length, offset, dtype=np.float32):
    """Zeros that begin ``offset`` bytes into a cache line."""
    nbytes = length * np.dtype(dtype).itemsize
    memory = np.zeros(nbytes + 2 * LINE, np.uint8)
    start = (offset - address(memory)) % LINE
    return memory[start : start + nbytes].view(dtype)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("offset", range(0, LINE, 4))
def test_boxes_divide_into_lines_as_the_array_does(offset):
    flat = placed(100, offset)
    slot = np.zeros(LINE + 4 * SEGMENT, np.uint8)
    shift = shared_memory.shift_to(flat, slot)
    boxes = shared_memory.divide(slot, shift, flat.dtype)
    assert [address(box) % LINE for box in boxes] == [offset] * 4
    assert [box.nbytes for box in boxes] == [SEGMENT] * 4
    ends = [address(box) + SEGMENT for box in boxes]
    assert all(end <= address(box) for end, box in zip(ends, boxes[1:], strict=False)), "overlap"
    assert ends[-1] <= address(slot) + slot.nbytes


@pytest.mark.parametrize(
    ("offset", "dtype"), [(0, "f4"), (4, "f4"), (60, "f4"), (1, "u1"), (32, "c16")]
)
def test_what_arrives_through_cross_memory_divides_into_lines_as_the_array_does(offset, dtype):
    def main(comm):
        found = cross_memory.work_array(comm, 33, placed(100, offset, dtype))
        return found.size, found.dtype, address(found) % LINE

    assert launch(main, 2, LocalWorld()) == [(33, np.dtype(dtype), offset)] * 2


def sums(all_reduce, size, length):
    """Four calls, in which every rank's array lies elsewhere, of two dtypes and at two places."""

    def main(comm):
        found = []
        for call in range(4):
            dtype = ("float32", "int64")[call % 2]
            array = placed(length, 8 * ((3 * comm.rank + call // 2) % 8), dtype)
            array[:] = np.arange(length) + 1000 * comm.rank + call
            try:
                all_reduce(comm, array)
            except (CommError, ValueError) as error:
                return [str(error)]
            expected = sum(np.arange(length) + 1000 * rank + call for rank in range(comm.size))
            found.append(array.tolist() == expected.tolist())
        return found

    return [got for found in launch(main, size, LocalWorld()) for got in found]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_arrays_may_lie_differently_on_every_rank(monkeypatch, size):
    monkeypatch.setattr(shared_memory, "SEGMENT", 64)
    for length in (1, 15, 16, 17, 100):
        assert sums(shared_memory.all_reduce, size, length) == [True] * 4 * size, length


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("looks for others' boxes at its own shift", "heads[rank][2]", "heads[comm.rank][2]"),
        ("boxes half a segment apart", "number * SEGMENT", "number * SEGMENT // 2"),
        ("boxes of the dtype of an earlier call", "rank, shift, flat.dtype", "rank, shift"),
    ],
)
def test_mutants_of_the_shift_are_rejected(what, old, new):
    wrong = Mutant(HERE, what, old, new).load()
    wrong.SEGMENT = 64
    answers = [sums(wrong.all_reduce, size, length) for size in (2, 3) for length in (17, 100)]
    assert not all(got is True for found in answers for got in found), f"nothing noticed: {what}"


def test_bytes_in_another_order_are_refused():
    """Native and swapped float32 have one number; added as if they were one, they give garbage."""

    def main(comm):
        with pytest.raises(CommError, match="byte order is not this machine's"):
            shared_memory.all_reduce(comm, np.ones(4, np.dtype("f4").newbyteorder()))
        again = np.ones(4, "f4")
        shared_memory.all_reduce(comm, again)  # who caught the error can go on
        return again.tolist()

    assert launch(main, 3, LocalWorld()) == [[3.0] * 4] * 3
