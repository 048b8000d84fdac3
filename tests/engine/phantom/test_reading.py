"""An array without numbers gives no numbers, whatever is asked of it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minidist.engine import phantom


def test_nothing_reads_memory_that_is_not_there():
    """In a process of its own: such a read could end it, or return what lies there by chance."""
    command = [sys.executable, str(Path(__file__).with_name("reading.py"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    assert done.stdout == "nothing has numbers\n"


@pytest.mark.parametrize("name", ["array_equal", "allclose", "unique", "median"])
def test_numpys_functions_that_would_read_say_so(name):
    array = phantom.empty((3, 4), "float32")
    with pytest.raises(phantom.NoNumbers, match=rf"numpy\.{name} reads the numbers of an array"):
        getattr(np, name)(*(array, array)[: 2 if name.startswith("a") else 1])


def test_numpys_functions_that_this_module_has_give_shapes():
    array = phantom.empty((3, 4), "float32")
    assert np.sum(array, axis=0).shape == (4,)
    assert np.concatenate([array, array]).shape == (6, 4)
    assert np.shape(array) == (3, 4)
