"""Lessons 1 to 4, 13 to 15, 18 to 20, 23 and 24 run, as scripts and as notebooks, and draw."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
LESSONS = {
    "01_autograd": ["01_autograd"],
    "02_tensors_and_layers": ["02_tensors_and_layers"],
    "03_optimizers": ["03_learning_rates", "03_optimizers"],
    "04_training_for_real": ["04_convolution", "04_images"],
    "13_gradients_that_vanish": ["13_gradient_norms", "13_training"],
    "14_smaller": ["14_smaller"],
    "15_many_requests": ["15_many_requests"],
    "18_private": ["18_attack", "18_private"],
    "24_federated": ["24_federated"],
    "20_larger_than_memory": ["20_larger_than_memory"],
    "23_attention": ["23_attention", "23_characters"],
    "19_what_does_it_look_at": ["19_maps", "19_random_weights", "19_what_does_it_look_at"],
}
CLAIMS = {  # what the text of a lesson relies on, in quick runs too
    "01_autograd": r"16 doublings, path by path: 131,070 additions",
    "03_optimizers": r"Adam             loss 0\.4",
    "04_training_for_real": r"divided by  25: the gradient is 4\.000 times that of the batch",
    "23_attention": r"the last position reads \[4\.08 0\.89\]",
    "13_gradients_that_vanish": r"sigmoid .* \d\.\de-1\d\n",
    "15_many_requests": r"'tp': 2} +the same answers(?s:.*)4 simulated ranks: the same .*: 608,",
    "18_private": r"10 of 10 recovered(?s:.*)4 simulated .* sent (\S+) bytes, .* privacy \1\n",
    "24_federated": r"α = 100 +(\S+%) (?s:.*)4 simulated ranks: \1 ",
}
ENVIRONMENT = os.environ | {"LESSON": "quick", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_runs_and_draws(lesson, tmp_path):
    script = ROOT / "lessons" / f"{lesson}.py"
    run = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(script)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    assert re.search(CLAIMS.get(lesson, ""), run.stdout)
    for picture in LESSONS[lesson]:
        assert (tmp_path / f"out/lessons/{picture}.png").stat().st_size > 20_000


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_is_a_notebook_in_small_cells(lesson):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(ROOT / "lessons" / f"{lesson}.py")
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and notebook.cells[0].source.startswith("# ")
    assert kinds.count("markdown") >= 5 and kinds.count("code") >= 5
    assert "What to take away" in notebook.cells[-1].source
    for cell in notebook.cells:
        assert cell.source.count("\n") < 75, cell.source


def test_a_lesson_runs_as_a_notebook_and_shows_its_picture(tmp_path):
    jupytext = pytest.importorskip("jupytext")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = jupytext.read(ROOT / "lessons" / "02_tensors_and_layers.py")
    environment = {name: ENVIRONMENT[name] for name in ("LESSON", "PYTHONPATH")}
    environment["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    old = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    try:
        client = nbclient.NotebookClient(
            notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
