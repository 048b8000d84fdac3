"""Every method trains with every kind of optimizer, also with those that know their parameters."""

import pytest

from minidist import optim
from minidist.comm.launcher import launch
from minidist.comm.local.world import LocalWorld
from minidist.parallel import METHODS
from tests.parallel.checks import Setting, check_equals_serial, is_exact

OPTIMIZERS = {
    "Nesterov": lambda: optim.Nesterov(0.05, weight_decay=0.01, exclude=("*bias",)),
    "AdamW": lambda: optim.AdamW(0.01, exclude=("*bias",)),
    "LARS": lambda: optim.LARS(1.0, weight_decay=0.01),
    "LAMB": lambda: optim.LAMB(0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("key", [key for key in METHODS if is_exact(key)])
def test_a_method_equals_serial_with(key, name):
    setting = Setting(optimizer=OPTIMIZERS[name], steps=3)
    ranks = 1 if key == "serial" else 3
    launch(lambda comm: check_equals_serial(comm, key, setting), ranks, LocalWorld())
