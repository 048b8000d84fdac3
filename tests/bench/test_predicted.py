"""Predicted beside measured: the calibration finds what is there, and looks at no whole step."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minidist import Machine, launch
from minidist.bench import predicted
from minidist.bench.calibration import fitted, kernels_of
from minidist.bench.parts import jobs, parts
from minidist.data import Batches
from minidist.engine.array import defaults, work
from minidist.parallel import simulate
from minidist.parallel.model_costs import parameter_count
from tests.mpi.run import needs_mpi


def seconds_of(kernels, prices):
    launch_seconds, per_byte, per_flop = prices
    return sum(launch_seconds + max(b * per_byte, f * per_flop) for b, f in kernels)


def test_prices_are_found_again():
    """From times by the rule itself; disturbed times keep their sum over a step."""
    random = np.random.default_rng(0)
    kernels = [10 ** random.uniform(3, 7, (n, 2)) for n in (1, 2, 3, 5, 9, 20)]
    for one in kernels:
        one[::2, 1] = 0  # half of them only move bytes
    expected, times = (7e-6, 2e-10, 3e-11), [1, 2, 1, 4, 1, 1]
    seconds = np.array([seconds_of(one, expected) for one in kernels])
    np.testing.assert_allclose(fitted(kernels, seconds, times), expected, rtol=1e-6)
    noisy = seconds * random.uniform(0.7, 1.4, len(seconds))
    prices = fitted(kernels, noisy, times)
    total = sum(n * seconds_of(one, prices) for n, one in zip(times, kernels, strict=True))
    assert total == pytest.approx(float(noisy @ times), rel=1e-9)


@pytest.mark.parametrize("name", ["MLP", "CNN", "GPT"])
def test_the_parts_of_a_step_add_up_to_it(name):
    """Its FLOPs exactly; kernels and bytes but for the method's own, and copies between layouts."""
    job = jobs(tiny=True)[name]
    count = parameter_count(job.model())
    alone = sum(one.times * np.c_[kernels_of(one), np.ones(len(kernels_of(one)))].sum(axis=0)
                for one in parts(job, job.batch, count))  # fmt: skip

    def run(comm):
        with defaults(device="phantom"):
            method = predicted.methods(job, 1)["data parallel"](comm)
            method.step(Batches(job.dataset, job.batch)[0])
            with work.listing() as kernels:
                method.step(Batches(job.dataset, job.batch)[0])
            return np.c_[kernels, np.ones(len(kernels))].sum(axis=0)

    nbytes, flops, kernels = launch(run, 1)[0]
    assert alone[1] == flops > 0
    assert alone[0] == pytest.approx(nbytes, rel=0.1)
    assert alone[2] == pytest.approx(kernels, rel=0.15)


def test_a_row_is_a_measured_step_and_one_simulated_on_the_machine_that_it_names():
    found = launch(lambda comm: predicted.rows(comm, tiny=True, turns=1, steps=1), 1)[0]
    assert [row["model"] for row in found] == ["MLP", "CNN", "GPT"]
    for row in found:
        job = jobs(tiny=True)[row["model"]]
        make = predicted.methods(job, 1)[row["method"]]
        batches, machine = Batches(job.dataset, job.batch), Machine(**row["machine"])
        assert row["seconds"] > 0 < row["machine"]["launch"]
        assert row["predicted"] == simulate(make, batches, 1, machine, steps=2).seconds[-1]


@needs_mpi
@pytest.mark.slow
def test_the_command_measures_on_two_ranks_and_writes_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n{}old\n{}after\n".format(*predicted.MARKS))
    out = tmp_path / "rows.json"
    assert predicted.run(["--ranks", "2", "--tiny", "--page", str(page), "--json", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [row["method"] for row in rows] == ["data parallel", "ZeRO-1", "1F1B"] * 3
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    for row in rows:
        assert row["ranks"] == 2 and row["machine"]["latency"] > 0
        error = f"{predicted.error(row):+.0%}"
        assert f"| {1e3 * row['predicted']:.2f} | {error} |" in text
    with pytest.raises(ValueError, match="the page has no lines"):
        predicted.inserted("nothing", "a table", predicted.MARKS)
