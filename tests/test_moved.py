"""Packages offer the names they list, and the imports of version 0.1 lead to what they did."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules, walk_packages

import pytest

import minidist

ROOT = Path(__file__).parents[1]
MOVED = ROOT / "minidist" / "moved"
OLD = sorted(
    ".".join(["minidist", *file.relative_to(MOVED).with_suffix("").parts])
    for file in MOVED.rglob("*.py")
    if file.name != "__init__.py"
)
PACKAGES = [
    package.name
    for package in walk_packages(minidist.__path__[:1], "minidist.")
    if package.ispkg and not package.name.startswith("minidist.moved")
]

# Every name that README, docs, lessons and scripts of version 0.1 imported or named.
LINES = """\
from minidist import LocalWorld, Machine, detect_anomaly, launch, metrics, models, nn, ops, optim
from minidist.collectives import ALL_GATHER, ALL_REDUCE, ALL_REDUCE_COST, ALL_TO_ALL, BROADCAST
from minidist.collectives import GATHER, REDUCE, REDUCE_SCATTER, SCATTER, all_reduce, auto
from minidist.collectives import barrier, chunks, ring, symmetric_memory
from minidist.comm import Crash, Deadlock, Link, Pauses, Timeline, first_process, print_once
from minidist.comm.comm import ANY
from minidist.comm.timeline import draw_timeline
from minidist.compare import compare
from minidist.counters import count_operations
from minidist.data import Augment, Batches, Dataset, fashion_mnist, shakespeare, text_file
from minidist.data import token_windows
from minidist.data.fashion_mnist import CLASSES
from minidist.gradcheck import gradcheck
from minidist.graph import to_dot
from minidist.meter import measure_saved
from minidist.metrics import accuracy
from minidist.models import mlp
from minidist.nn import CrossEntropy, Embedding, Linear, Sequential
from minidist.optim import Adam, LAMB, LARS, MixedPrecision, SGD, schedules
from minidist.optim.schedules import cosine, linear, linear_scaling, warm_up
from minidist.parallel import BackupWorkers, Compressed, DataParallel, DiLoCo, ElasticAveraging
from minidist.parallel import Gossip, LocalSGD, LookAhead, Overlapped, ParameterServer
from minidist.parallel import PerParameter, PipeDream, Pipeline, Serial, ServerLost
from minidist.parallel import StaleParameterServer, SymmetricDataParallel, Zero1, Zero2, Zero3
from minidist.parallel.compressors import BFloat16, Float16, PowerSGD, Quantised, RandomK, Sign
from minidist.parallel.compressors import TopK
from minidist.parallel.gossip import exponential_graph, ring_graph
from minidist.parallel.pricing import price_units
from minidist.parallel.prover import ScheduleError
from minidist.parallel.schedules import Backward, Forward, SCHEDULES, Schedule
from minidist.pipeline_plot import draw_price, draw_run, legend
from minidist.plots import plot_confusion, save
from minidist.recompute import checkpoint
from minidist.summary import layer_summary, mfu, summary
from minidist.tensor import defer_weight_gradients, no_grad
"""

# Run in a process of its own, since an import leaves the old name behind in its package.
IMPORT_ALL = """
import sys, warnings
for old in sys.argv[1:]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(f"import {old}", "here", "exec"))
    new = sys.modules[old].__name__
    assert new != old, old
    said = [str(one.message) for one in caught if one.filename == "here"]
    assert said == [f"{old} is now {new}"], (old, said)
"""


def errors_of(program: str, *arguments: str) -> str:
    """What a program that fails says; nothing if it does not fail."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return f"status {done.returncode}: {done.stderr}" if done.returncode else ""


def test_every_import_of_version_0_1_works():
    assert errors_of(LINES) == ""
    assert "NameThatNeverWas" in errors_of("from minidist import NameThatNeverWas")


def test_every_old_name_leads_to_the_new_module_and_says_so():
    assert len(OLD) > 40
    assert errors_of(IMPORT_ALL, *OLD) == ""


def test_no_old_name_is_used_here():
    """An old name of a module may today be offered by a package: ``launch`` of minidist.comm."""
    names = {package: getattr(import_module(package), "__all__", ()) for package in PACKAGES}
    offered = {f"{package}.{name}" for package in names for name in names[package]}
    folders = ("minidist", "lessons", "tests")
    for file in (file for folder in folders for file in ROOT.glob(f"{folder}/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                used = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used = {f"{node.module}.{alias.name}" for alias in node.names} - offered
                used.add(str(node.module))
            else:
                continue
            assert not used & set(OLD), f"{file} imports {used & set(OLD)}"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_offers_what_it_lists(name):
    package = import_module(name)
    modules = {module.name for module in iter_modules(package.__path__[:1])}
    offered = set(getattr(package, "__all__", ()))
    assert offered <= set(dir(package))
    for one in offered:
        assert getattr(package, one) is not None
    if getattr(vars(package).get("__getattr__"), "__module__", "") == "minidist.lazy":
        both = offered & modules
        assert not both, f"{name} offers {both}, which are also its modules"
        with pytest.raises(AttributeError, match=f"'{name}' has no attribute 'nothing'"):
            _ = package.nothing
