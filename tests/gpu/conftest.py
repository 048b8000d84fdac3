"""The device that these tests run on: a GPU, or the stand-in when rehearsing without one."""

import os

import pytest
import strict

from minidist.engine import array as arrays

# tests/gpu/run sets it to "strict" to try itself out on a machine without a GPU.
DEVICE = os.environ.get("MINIDIST_GPU_TESTS", "cuda")


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setitem(arrays.DEVICES, "strict", lambda: strict)
    try:
        arrays.module(DEVICE)
    except arrays.DeviceError as error:
        pytest.skip(str(error))
    return DEVICE
