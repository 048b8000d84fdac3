"""Run by test_reading.py in a process of its own, which a read of memory that is not there ends.

Everything is tried on an array whose elements lie a TB apart: each of its methods, each function of
its module, and each of NumPy's. What comes back may have shapes, and no numbers. Prints what has.
"""

import itertools
import warnings

import numpy as np

from minidist.engine import phantom

warnings.simplefilter("ignore")
BIG = phantom.empty((1 << 40, 4), "float32")[:: 1 << 38]  # 4 x 4
INDEX = phantom.empty((3,), "int64")
MASK = phantom.empty((4,), "bool")

# They answer with shapes, dtypes or whether something is an array at all.
OF_SHAPES = {"shape", "ndim", "size", "iscomplexobj", "isrealobj", "isscalar", "iterable"}
OF_SHAPES |= {"may_share_memory", "shares_memory", "isfortran", "typename", "can_cast", "str_"}
# They write files, change settings, or are about no array.
NO_ARRAYS = {"save", "savez", "savez_compressed", "savetxt", "load", "loadtxt", "genfromtxt"}
NO_ARRAYS |= {"fromfile", "info", "test", "show_config", "show_runtime", "get_include"}
NO_ARRAYS |= {"set_printoptions", "seterr", "seterrcall", "setbufsize", "getbufsize", "geterr"}
NO_ARRAYS |= {"issubdtype", "isdtype", "broadcast_shapes", "geterrcall", "get_printoptions"}


def numbers_in(value):
    """Whether there are numbers in what an operation returned."""
    if isinstance(value, (tuple, list)):
        return any(map(numbers_in, value))
    if isinstance(value, dict):
        return any(map(numbers_in, value.values()))
    return isinstance(value, (np.ndarray, np.generic, bool, int, float, complex, str, bytes))


def tried(name, function, arguments):
    """The calls that returned numbers."""
    found = []
    for given in arguments:
        try:
            value = function(*given)
        except Exception:  # any error is no number
            continue
        if numbers_in(value):
            found.append(f"{name}{given} gave {type(value).__name__}")
    return found


found = []
for name in dir(phantom.ndarray):
    method = getattr(BIG, name, None)
    if not name.startswith("_") and callable(method):
        calls = [(), (0,), (1, 0), (-1,), ("float64",), ("int32",), (BIG,), (INDEX,), (0, 1)]
        found += tried(f"array.{name}", method, calls)
calls = [(BIG,), (BIG, BIG), (BIG, 0), (BIG, 1.5), (0, BIG), ([BIG, BIG],), (BIG, BIG, BIG)]
calls += [
    (BIG, INDEX),
    (INDEX,),
    (MASK,),
    (MASK, BIG, BIG),
    ("ij->i", BIG),
    ("ij,jk->ik", BIG, BIG),
]
of_numpy = [*calls[:4], *calls[5:7]]  # without a number first: then the array may be the dtype
for name in {*phantom.FUNCTIONS, *phantom.METHODS, "exp", "add", "maximum", "isnan", "sqrt"}:
    if name not in OF_SHAPES:
        found += tried(f"phantom.{name}", getattr(phantom, name), calls)
for name in sorted({*np.__all__} - OF_SHAPES - NO_ARRAYS):
    function = getattr(np, name, None)
    if callable(function) and not (isinstance(function, type) and issubclass(function, Warning)):
        found += tried(f"numpy.{name}", function, of_numpy)
for name in np.linalg.__all__:
    found += tried(f"numpy.linalg.{name}", getattr(np.linalg, name), calls[:3])

one = [0, -1, slice(2, None, 3), None, ..., INDEX, MASK, True, [0, 1], np.int64(3), -4]
for key in [*one, *itertools.product(one, one)]:
    found += tried("index", BIG.__getitem__, [(key,)])
for read in (bool, int, float, complex, hash, max, sum, bytes, memoryview, set, sorted, any):
    found += tried(
        read.__name__, read, [(BIG,), (BIG[0, 0],), (BIG[0],)][: 3 if read is bool else 2]
    )
for text in ("{:.3f}", "{:d}", "%.3f", "%d"):
    found += tried(text, text.format if "{" in text else text.__mod__, [(BIG[0, 0],)])

print("\n".join(found) or "nothing has numbers")
