"""The rows of ``METHODS`` are what their names say."""

from __future__ import annotations

import pytest

from minidist.parallel import METHODS


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
    schedule = key.removeprefix("pipeline/").replace("1f1b", "one_f_one_b")
    if schedule != "pipedream":
        microbatches = 1 if schedule == "naive" else 4
        assert settings(key) == {"schedule": schedule, "microbatches": microbatches}
