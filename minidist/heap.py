"""The memory that NumPy takes its arrays from: kept when freed, and in huge pages.

A training step frees its activations, and the next one allocates the same again. By default the C
library gives large blocks back to the kernel each time, which then has to map and zero every page
anew: thousands of page faults a step. So it is asked to keep what is freed (``keep``).

And a page has 4 KB, unless the kernel is asked for huge ones, of 2 MB. The kernel copies messages
between processes page by page, and looks up each of them first; a core, too, finds its way through
few pages sooner than through many. NumPy asks for arrays of 4 MB and more, where a page that
already is small stays small; ``in_huge_pages`` asks for the whole heap, before most of it is used.

Both cost memory: a process keeps its peak, and a page is held when a part of it is used. Without
glibc, or where the kernel has huge pages only by hand, nothing happens. mallopt(3), madvise(2).
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

HEAP = 1 << 30  # bytes of addresses, not of memory, to be in huge pages
HUGE = 2 << 20  # bytes of a huge page, on most machines
GROWTH = 16 << 20  # bytes that the heap grows by, beyond
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8  # of malloc.h
COLLAPSE = 25  # MADV_COLLAPSE of Linux's mman.h


def keep(libc: ctypes.CDLL) -> None:
    """Do not give memory back below 2 GB, and take blocks of up to 1 GB from the heap."""
    # glibc before 2.35 refuses thresholds beyond half of the 64 MB of a thread's own heap.
    _ = libc.mallopt(MMAP_THRESHOLD, 1 << 30) or libc.mallopt(MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(ARENA_MAX, 1)  # threads, such as a communication stream, use the same heap
    libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(TOP_PAD, GROWTH)


def in_huge_pages(libc: ctypes.CDLL, length: int = HEAP) -> bool:
    """Grow the heap by ``length`` at once, and ask for huge pages; whether that could be had."""
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.sbrk.argtypes = [ctypes.c_ssize_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if limited():
        return False  # the user has other plans for these addresses
    before = libc.sbrk(0)
    libc.mallopt(TOP_PAD, length)
    block = libc.malloc(GROWTH)  # more than is free: the heap grows by this, and by the pad
    libc.free(block)
    libc.mallopt(TOP_PAD, GROWTH)
    end = libc.sbrk(0)
    if not block or not before <= end - length or not hasattr(mmap, "MADV_HUGEPAGE"):
        return False  # there is a limit to addresses, or the block came from elsewhere
    start = heap_start() or block // mmap.PAGESIZE * mmap.PAGESIZE
    asked = libc.madvise(start, end - start, mmap.MADV_HUGEPAGE) == 0
    if asked:  # and what is in use already, now; kernels before 6.1 do it in their own time
        used = -(-block // HUGE) * HUGE  # to the end of the last page of which a part is in use
        libc.madvise(start, used - start, COLLAPSE)
    return asked


def limited() -> bool:
    """Whether this process may not have as many addresses as it likes."""
    import resource  # not on Windows, where there is no glibc either

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits)


def heap_start() -> int | None:
    """The address of the heap's first byte, from Linux; None elsewhere."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split("-")[0], 16) for line in lines if line.endswith("[heap]")), None)


def prepare() -> bool:
    """Do both; whether there will be huge pages."""
    try:
        libc = ctypes.CDLL(None)
        keep(libc)
        return in_huge_pages(libc)
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
