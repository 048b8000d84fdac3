"""The rows of ``METHODS`` are what their names say."""

from __future__ import annotations

import pytest

from minidist import launch
from minidist.compare import names
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import METHODS, Pipeline
from minidist.parallel.pipeline.schedules import SCHEDULES


def settings(key):
    return getattr(METHODS[key], "keywords", {})


@pytest.mark.parametrize("key", [key for key in METHODS if key.startswith("parameter_server")])
def test_rows_of_servers(key):
    given = settings(key)
    assert given.get("colocated", False) == key.endswith("_colocated")
    assert ("servers" in given) == key.endswith("_sharded")
    assert given.get("staleness") == (2 if "/ssp" in key else None)
    if "servers" in given:
        assert [given["servers"](ranks) for ranks in (2, 3, 4, 8)] == [1, 1, 2, 2]


@pytest.mark.parametrize("key", [key for key in METHODS if key.startswith("pipeline")])
def test_rows_of_pipelines(key):
    schedule = key.removeprefix("pipeline/")
    if schedule != "pipedream":
        microbatches = 1 if schedule == "naive" else 4
        assert settings(key) == {"schedule": schedule, "microbatches": microbatches}


def test_a_row_a_schedule_and_the_name_of_version_0_1_are_one():
    assert SCHEDULES["one_f_one_b"] is SCHEDULES["1f1b"]
    assert names("pipeline/one_f_one_b") == names("pipeline/1f1b") == ["serial", "pipeline/1f1b"]
    programs = launch(
        lambda comm: [
            Pipeline(
                mlp((784, 5, 10)), CrossEntropy(), SGD(0.1), comm, schedule=name
            ).layout.programs
            for name in ("1f1b", "one_f_one_b")
        ],
        2,
    )
    assert programs[0][0] == programs[0][1]
