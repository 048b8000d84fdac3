"""Arrays come from memory in huge pages, where the kernel has any; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from minidist import heap

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ON_REQUEST = SETTING.exists() and "[never]" not in SETTING.read_text()

PROGRAM = """
from minidist import array, heap
import numpy as np

arrays = [np.ones(1 << 20, np.uint8) for _ in range(16)]  # short of NumPy's own 4 MB
huge, inside = 0, False
for line in open("/proc/self/smaps"):
    first, *rest = line.split()
    if "-" in first and not first.endswith(":"):
        inside = bool(rest) and rest[-1] == "[heap]"
    elif inside and first == "AnonHugePages:":
        huge += int(rest[0])
print(huge)
"""


@pytest.mark.skipif(not ON_REQUEST, reason="this kernel gives no huge pages")
def test_small_arrays_lie_in_huge_pages():
    if not heap_can_grow():
        pytest.skip("not glibc, or a limit to addresses")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8192, f"KB in huge pages, of 16 MB in arrays: {done.stdout}"


def heap_can_grow() -> bool:
    program = "from minidist import heap; print(heap.prepare())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.strip() == "True"


def test_a_limit_to_addresses_is_respected():
    """Where the heap may not grow by a gigabyte, everything works as it did."""
    resource = pytest.importorskip("resource")
    limit = 1 << 30
    program = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
    program += "import numpy as np\nfrom minidist import heap\nprint(heap.prepare())\n"
    program += "print(np.ones(1 << 22).sum())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "4194304.0"], done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != limit, "ours is as it was"


def test_without_glibc_nothing_happens(monkeypatch):
    class Musl:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Musl())
    assert heap.prepare() is False


def test_without_huge_pages_nothing_happens(monkeypatch):
    monkeypatch.delattr(heap.mmap, "MADV_HUGEPAGE", raising=False)
    assert heap.prepare() is False
