"""The CUDA text of every kernel, compiled as C++ and run on the host, one thread a block.

A kernel's loops step by ``blockDim.x``, so a block of one thread does the work of a whole one, and
what combines the threads of a block (``total``, ``largest``) has one value to combine. That leaves
out what only a GPU can show: threads that meet. The arithmetic and the indices are the same text.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minidist.engine.kernels import FLOATS, KERNELS, Kernel

AROUND = """
#include <cmath>
#include <cstdint>
#include <algorithm>
struct Three { long long x, y, z; };
static thread_local Three blockIdx, blockDim, threadIdx;
#define __global__ static
#define __shared__ static thread_local
static void __syncthreads() {}
static float __int_as_float(unsigned bits) { float f; __builtin_memcpy(&f, &bits, 4); return f; }
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
using std::max; using std::exp; using std::log; using std::sqrt; using std::nan;
"""

# How a host goes over what a GPU does at once.
OVER = {
    "points": "for (blockIdx.x = 0; blockIdx.x < n; blockIdx.x++)",
    "elements": "for (blockIdx.x = 0; blockIdx.x < n; blockIdx.x++)",
    "rows": "for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)",
    "columns": "for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)"
    " for (threadIdx.x = 0; threadIdx.x < 8; threadIdx.x++)",
}


def text_of(kernel: Kernel, dtype: str) -> str:
    """One kernel of one dtype as C++, in a namespace of its own."""
    value, _ = FLOATS[dtype]
    # 128 lanes, each with every 128th row, become one with all of them.
    body = kernel.text.replace('extern "C" ', "").replace("j += 128", "j += 1")
    body = body.replace("int k = 64;", "int k = 0;")
    declared = re.search(r"void \w+\((.*?)\)", body).group(1)  # type: ignore[union-attr]
    names = ", ".join(part.split()[-1].lstrip("*") for part in declared.split(","))
    return f"""
namespace {kernel.name}_{dtype} {{
typedef {value} T;
typedef {value} A;
static A total(A v) {{ return v; }}
static A largest(A v) {{ return v; }}
{body}
}}
extern "C" void run_{kernel.name}_{dtype}(long long blocks, {
        declared.replace("T *", value + " *").replace("A *", value + " *")
    }) {{
    blockDim.x = 1;
    threadIdx.x = threadIdx.y = 0;
    {OVER[kernel.over]} {kernel.name}_{dtype}::{kernel.name}({names});
}}
"""


@functools.cache
def library() -> Any:
    """All kernels, compiled; None where there is no C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="kernels-"))
    text = AROUND + "".join(text_of(k, dtype) for k in KERNELS.values() for dtype in "fd")
    (folder / "kernels.cpp").write_text(text)
    built = folder / "kernels.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(built), str(folder / "kernels.cpp")]
    subprocess.run(command, check=True, timeout=120)
    loaded = ctypes.CDLL(str(built))
    shutil.rmtree(folder)
    return loaded


def kernel_on_host(name: str, dtype: str) -> Callable[..., None] | None:
    """A kernel as a function of (blocks, NumPy arrays and numbers); None if it cannot be had."""
    if dtype == "e" or library() is None:
        return None
    function = getattr(library(), f"run_{name}_{dtype}")

    def run(blocks: int, given: tuple[Any, ...]) -> None:
        function(ctypes.c_longlong(blocks), *(_as_c(value) for value in given))

    return run


def _as_c(value: Any) -> Any:
    if isinstance(value, bool):
        return ctypes.c_bool(value)
    if isinstance(value, int):
        return ctypes.c_longlong(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return value.ctypes.data_as(ctypes.c_void_p)
