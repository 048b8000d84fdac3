"""Packages import from packages below their own, there is no circle, and a piece loads little."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import imports
import pytest

from minidist.lazy import COMPLETED_BY

ROOT = Path(__file__).parents[1]

# From the top down, a layer a line.
LAYERS = [
    "__main__",
    "cli",
    "exercises",
    "bench",
    "compare",
    "plan",  # prices and pictures of pipelines without running them
    "inference",
    "compress",
    "privacy",
    "explain",
    "plots",
    "checkpoint",
    "parallel",
    "inspect",
    "models",
    "nn",
    "optim",
    "data",
    "ops",
    "collectives",
    "run",
    "comm",
    "engine",
    # The face of the whole package: its names are loaded when they are asked for, so it imports
    # nothing but lazy, and what it defines (the version, launchers' variables) is there for all.
    "minidist",
    "colours",  # a table, for all who draw
    "lazy",
]
# minidist/moved leads from old names to today's modules: nothing here may use it.
SOURCES = imports.read(ROOT / "minidist", without="moved")
FOUND = imports.graph(SOURCES)

# Who alone may import a library that not everybody has or needs.
ALONE = {
    "mpi4py": "minidist.comm.mpi.process",
    "cupy": "minidist.engine.array",
    "greenlet": "minidist.comm.local.",
    "torch": "minidist.bench.",
    "autograd": "minidist.bench.",
    "cryptography": "minidist.privacy.secure_sum",
}


def test_no_module_imports_itself_through_others():
    way = imports.circle(FOUND)
    assert not way, imports.drawn(FOUND, way)


def test_no_package_imports_from_a_higher_one():
    missing = {imports.layer(name) for name in SOURCES} - set(LAYERS)
    assert not missing, f"LAYERS does not say where {missing} stand"
    assert imports.upward(FOUND, LAYERS) == []


def test_the_rows_of_the_readme_stand_in_that_order():
    """Its table says that a package imports only from rows above its own."""
    rows = re.findall(r"^\| `(\w+)/` \|", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) > 10
    found = {
        name: {target: line for target, line in targets.items() if imports.layer(target) in rows}
        for name, targets in FOUND.items()
        if imports.layer(name) in rows
    }
    assert imports.upward(found, rows[::-1]) == []


def test_most_imports_were_found():
    """So that the two tests above do not pass because nothing was read."""
    assert len(FOUND) > 150
    assert sum(map(len, FOUND.values())) > 600
    assert "minidist.comm.comm" in FOUND["minidist.collectives.ring"]
    assert "minidist.plan" in FOUND["minidist.cli.plan"]  # inside a function
    assert (
        "minidist.parallel.simulation" in FOUND["minidist.bench.predicted"]
    )  # simulate, through a lazy face
    assert all(not name.endswith(".__init__") for name in FOUND)


def test_names_of_modules_are_computed_in_few_places():
    """Faces and what completes a module (lazy), benches by name, and peers of the benches."""
    allowed = {"minidist.lazy", "minidist.cli.bench", "minidist.bench.peer"}
    allowed.add("minidist.exercises.exercise")  # a folder each
    allowed.add("minidist.compare.named")  # a module of the user's
    assert imports.computed(SOURCES) <= allowed
    # The one module to which a higher package adds: Tensor gets its operators when it is loaded.
    assert COMPLETED_BY == {
        "minidist.engine.tensor": "minidist.ops",
        "minidist.engine.array": "minidist.engine.phantom",  # when that device is asked for
    }


def test_libraries_that_not_everybody_has_are_imported_in_one_place():
    for name, library in imports.outside(SOURCES):
        assert name.startswith(ALONE.get(library, "")), f"{name} imports {library}"


def graph(**sources: str) -> imports.Graph:
    """Of made-up modules: ``a_b`` is ``a.b``."""
    trees = {name.replace("_", "."): ast.parse(dedent(text)) for name, text in sources.items()}
    return imports.graph(trees)


IMPORTS_OF_B = {
    "plain": "import p.b",
    "from": "from p.b import x",
    "a module from its package": "from p import b",
    "in a function": "def f():\n    from p.b import x",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import x",
    "by name": 'import_module("p.b")',
    "through a lazy face": "from p import x",
}


@pytest.mark.parametrize("statement", IMPORTS_OF_B.values(), ids=IMPORTS_OF_B)
def test_a_made_up_circle_is_found(statement):
    found = graph(
        p='a, b, c = offer(__name__, {"b": ["x"]})',
        p_a=statement,
        p_b="import os\nfrom p.c import y",
        p_c="import p.a",
        p_d="import p.a",
    )
    line = statement.count("\n") + 1
    way = imports.circle(found)
    assert imports.drawn(found, way) == f"p.a:{line} → p.b:2 → p.c:1 → p.a"
    assert imports.circle(graph(p="", p_a=statement, p_b="", p_c="import p.a")) == []


def test_a_made_up_import_from_above_is_found():
    found = graph(p_top="import p.low.x", p_low_x="x = 1", p_low_y="def f():\n  import p.top")
    assert imports.upward(found, ["top", "low"]) == ["p.low.y:2 imports p.top, which is higher"]
    assert imports.upward(found, ["low", "top"]) == ["p.top:1 imports p.low.x, which is higher"]


def test_a_module_that_imports_itself_is_a_circle():
    assert imports.circle(graph(p_a="import p.a")) == ["p.a", "p.a"]


LEAN = """
import atexit, json, os, signal, sys, threading, warnings
import numpy  # which changes some of this itself

def process():
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if line.rstrip().endswith("[heap]")]
    return {
        "sys.path": list(sys.path),
        "environment": dict(os.environ),
        "signals": [str(signal.getsignal(number)) for number in signal.valid_signals()],
        "hooks": [str(hook) for hook in (sys.excepthook, sys.meta_path, sys.path_hooks)],
        "at exit": atexit._ncallbacks(),
        "threads": threading.active_count(),
        "warnings": len(warnings.filters),
        # The modules themselves take a few MB.
        "heap in steps of 64 MB": sum(int(end, 16) - int(at, 16) for at, end in spans) >> 26,
    }

before = process()
exec(sys.argv[1])
after = process()
print(json.dumps([sorted(sys.modules), before, after]))
"""


def load(statement: str) -> tuple[list[str], dict, dict]:
    """The modules loaded by ``statement``, and the state of the process before and after."""
    command = [sys.executable, "-c", LEAN, statement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="not Linux")
def test_a_collective_loads_no_world_no_plots_and_no_engine():
    modules, before, after = load("from minidist.collectives import ring")
    libraries = {"mpi4py", "matplotlib", "rich", "greenlet", "cupy"}
    assert not libraries & {name.partition(".")[0] for name in modules}
    ours = [name for name in modules if name.startswith("minidist.")]
    world = ("local", "mpi", "launcher", "timeline", "tuning")
    assert not [n for n in ours if n.startswith(tuple(f"minidist.comm.{one}" for one in world))]
    above = ("ops", "data", "optim", "nn", "models", "inspect", "parallel", "plots", "compare")
    assert not [n for n in ours if imports.layer(n) in above]
    engine = {name for name in ours if imports.layer(name) == "engine"}
    allowed = ("", ".arithmetic", ".array", ".mode")
    assert engine <= {f"minidist.engine{one}" for one in allowed}
    assert before == after


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="not Linux")
@pytest.mark.parametrize("name", ["minidist.comm", "minidist.engine.tensor", "minidist.parallel"])
def test_importing_changes_nothing_in_the_process(name):
    _, before, after = load(f"import {name}")
    assert before == after


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("given", ["", "3"])
def test_under_a_launcher_a_rank_gets_one_thread(early, given):
    """The only change that importing makes; not if NumPy is loaded, nor against the user."""
    program = "import os, numpy" if not early else "import os"
    program += "\nimport minidist\nprint(os.environ.get('OMP_NUM_THREADS', ''))"
    environment = {"PATH": "", "PMI_SIZE": "2"} | ({"OMP_NUM_THREADS": given} if given else {})
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (given or ("1" if early else ""))


PATHS_TO_TENSOR = {
    "minidist": "from minidist import Tensor",
    "engine": "from minidist.engine import Tensor",
    "tensor": "from minidist.engine.tensor import Tensor",
    "module": "import minidist.engine.tensor as t; Tensor = t.Tensor",
    "attribute": "import minidist; Tensor = minidist.engine.tensor.Tensor",
    "as_tensor": "from minidist.engine import as_tensor as Tensor",
    "an op": "from minidist.ops.elementwise import add; from minidist.engine import Tensor",
    "a gradient check": "import minidist.engine.gradcheck as g; Tensor = g.Tensor",
    "parameter": "from minidist.nn import Linear\nTensor = lambda x: Linear(1, 1).init(0).weight",
    "pickle": "import pickle; from minidist.engine import Tensor\n"
    "Tensor = lambda x, T=Tensor: pickle.loads(pickle.dumps(T(x)))",
}


@pytest.mark.parametrize("program", PATHS_TO_TENSOR.values(), ids=PATHS_TO_TENSOR)
def test_a_tensor_from_anywhere_has_its_operators(program):
    program += "\nx = Tensor([1.0])\nassert (x + x == x * 2).all()\nx.sum(), x.T, 1 - x, -x[0]"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
