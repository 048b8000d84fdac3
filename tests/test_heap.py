"""Arrays come from memory in huge pages, where the kernel has any; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from minidist import heap

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ON_REQUEST = SETTING.exists() and "[never]" not in SETTING.read_text()

PROGRAM = """
from concurrent.futures import ThreadPoolExecutor
from minidist import heap
from minidist.engine import array
import numpy as np
import sys

make = lambda: [np.ones(1 << 20, np.uint8) for _ in range(16)]  # short of NumPy's own 4 MB
arrays = ThreadPoolExecutor(1).submit(make).result() if "thread" in sys.argv else make()
huge, inside = 0, False
for line in open("/proc/self/smaps"):
    first, *rest = line.split()
    if "-" in first and not first.endswith(":"):
        inside = bool(rest) and rest[-1] == "[heap]"
    elif inside and first == "AnonHugePages:":
        huge += int(rest[0])
print(huge)
"""


def prints(program: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not ON_REQUEST, reason="this kernel gives no huge pages")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
@pytest.mark.skipif(heap.limited(), reason="there is a limit to addresses")
@pytest.mark.parametrize("stream", ["main", "thread"])
def test_small_arrays_lie_in_huge_pages(stream):
    (kilobytes,) = prints(PROGRAM, stream)
    assert int(kilobytes) >= 8192, f"KB in huge pages, of 16 MB in arrays: {kilobytes}"


@pytest.mark.parametrize("limit", [1 << 30, 3 << 29])
def test_a_limit_to_addresses_is_respected(limit):
    """Where addresses are counted, none are taken ahead, and everything works as it did."""
    pytest.importorskip("resource")
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
    program += "import numpy as np\nfrom minidist import heap\nprint(heap.prepare())\n"
    program += "print(np.ones(1 << 22).sum())"
    assert prints(program) == ["False", "4194304.0"]


def test_where_the_heap_cannot_grow_there_is_an_answer():
    """As if there were no limit, but the kernel says no."""
    pytest.importorskip("resource")
    limit = 1 << 30
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
    program += "import numpy as np\nfrom minidist import heap\nheap.limited = lambda: False\n"
    program += "print(heap.prepare(), np.ones(1 << 22).sum())"
    assert prints(program) == ["False", "4194304.0"]


def test_without_glibc_nothing_happens(monkeypatch):
    class Musl:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Musl())
    assert heap.prepare() is False


def test_without_huge_pages_nothing_happens():
    program = "import mmap\nif hasattr(mmap, 'MADV_HUGEPAGE'): del mmap.MADV_HUGEPAGE\n"
    assert prints(program + "from minidist import heap; print(heap.prepare())") == ["False"]


def test_old_glibc_refuses_a_high_threshold():
    class Old:
        def __init__(self) -> None:
            self.asked: dict[int, int] = {}

        def mallopt(self, name: int, value: int) -> int:
            if name == heap.MMAP_THRESHOLD and value > 32 << 20:
                return 0
            self.asked[name] = value
            return 1

    old = Old()
    heap.keep(old)  # type: ignore[arg-type]
    assert old.asked[heap.MMAP_THRESHOLD] == 32 << 20
