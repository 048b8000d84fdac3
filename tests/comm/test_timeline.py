"""A recorded run: every message is an arrow, and the file is what Perfetto wants."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from minidist.cli import main as cli
from minidist.collectives import ALL_REDUCE, all_reduce
from minidist.comm import LocalWorld, Machine, Timeline, launch
from minidist.comm.timeline import READABLE, step_of
from minidist.comm.trace import Event
from minidist.data import Batches, Dataset
from minidist.engine.array import work
from minidist.models import mlp
from minidist.nn import CrossEntropy
from minidist.optim import SGD
from minidist.parallel import DataParallel


def recorded(name, ranks=4, length=1000):
    world = LocalWorld(record=True)
    launch(lambda comm: all_reduce(comm, np.ones(length), algorithm=name), ranks=ranks, world=world)
    return Timeline(world.traces), world


@pytest.mark.parametrize("name", ALL_REDUCE)
def test_every_message_is_an_arrow_forward_in_time(name):
    timeline, world = recorded(name)
    arrows = timeline.arrows()
    assert len(arrows) == sum(trace.sent.messages for trace in world.traces)
    assert sum(arrow.nbytes for arrow in arrows) == sum(t.sent.nbytes for t in world.traces)
    assert all(arrow.end > arrow.start and arrow.sender != arrow.receiver for arrow in arrows)


def test_arrows_of_a_group_join_ranks_of_the_world():
    def main(comm):
        part = comm.split(comm.rank % 2)  # 0 with 2, 1 with 3
        part.sendrecv(np.ones(1), 1 - part.rank, np.zeros(1), 1 - part.rank)

    world = LocalWorld(record=True)
    launch(main, ranks=4, world=world)
    pairs = sorted((arrow.sender, arrow.receiver) for arrow in Timeline(world.traces).arrows())
    assert pairs == [(0, 2), (1, 3), (2, 0), (3, 1)]


def test_steps_are_numbered_in_events_and_counted_by_name():
    timeline, _ = recorded("ring", ranks=3)
    names = [event.name for event in timeline.events[0] if event.kind == "sendrecv"]
    assert names == ["reduce-scatter 1/2", "reduce-scatter 2/2", "all-gather 1/2", "all-gather 2/2"]
    by_step = timeline.totals()[0]["by_step"]
    assert {name: part["messages"] for name, part in by_step.items()} == {
        "reduce-scatter": 2,
        "all-gather": 2,
    }
    assert step_of(Event("compute", "forward 3", 0, 1)) == "forward"


def test_events_of_a_rank_do_not_overlap_and_cover_its_busy_time():
    timeline, world = recorded("segmented_ring", length=200_000)
    for events, trace in zip(timeline.events, world.traces, strict=True):
        ends = [0.0]
        for event in events:
            assert event.start >= ends[-1] - 1e-15
            ends.append(event.end)
        computing = sum(event.end - event.start for event in events if event.kind == "compute")
        assert computing == pytest.approx(trace.busy, rel=1e-9)


def test_clocks_are_aligned_by_their_offsets():
    world = LocalWorld(Machine(latency=1.0), record=True)
    launch(
        lambda comm: comm.sendrecv(np.zeros(0), 1 - comm.rank, np.zeros(0), 1 - comm.rank),
        ranks=2,
        world=world,
    )
    world.traces[1].offset = 5.0
    assert [events[0].start for events in Timeline(world.traces).events] == [0.0, 5.0]


def test_the_file_is_chrome_trace_events_with_a_flow_for_each_message(tmp_path):
    timeline, _ = recorded("ring", ranks=3)
    events = json.loads(timeline.save(tmp_path / "new" / "ring.json").read_text())["traceEvents"]
    kinds = [event["ph"] for event in events]
    assert kinds.count("s") == kinds.count("f") == 12
    assert kinds.count("M") == 3
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and event["pid"] in range(3) for event in spans)
    last = max(event["ts"] + event["dur"] for event in spans) / 1e6
    assert last == pytest.approx(max(e.end for events in timeline.events for e in events))


def exchanges(comm, rounds, stream=False):
    """As many messages, each way, of 8 bytes; perhaps on the communication stream."""

    def exchange(comm):
        for _ in range(rounds):
            comm.sendrecv(np.ones(1), 1 - comm.rank, np.zeros(1), 1 - comm.rank)

    comm.spawn(exchange).wait() if stream else exchange(comm)


def recorded_exchanges(rounds, stream=False):
    world = LocalWorld(Machine(latency=1.0, bandwidth=1e30), record=True)
    launch(lambda comm: exchanges(comm, rounds, stream), ranks=2, world=world)
    return Timeline(world.traces)


def test_arrows_of_a_stream_join_the_threads_of_streams(tmp_path):
    timeline = recorded_exchanges(2, stream=True)
    events = json.loads(timeline.save(tmp_path / "stream.json").read_text())["traceEvents"]
    assert {event["tid"] for event in events if event["ph"] in "sf"} == {1}
    threads = {(e["tid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"}
    assert threads == {(0, "work"), (1, "communication stream")}


def test_no_arrow_goes_back_in_time_where_clocks_are_aligned_badly():
    timeline = recorded_exchanges(1)
    timeline.traces[1].offset = -5.0
    assert [arrow.end >= arrow.start for arrow in Timeline(timeline.traces).arrows()] == [True] * 2


def test_of_a_long_run_the_picture_shows_the_middle_and_says_so():
    timeline = recorded_exchanges(1000)
    assert timeline.window(readable=100) == (450.0, 550.0)  # one event a second, on each rank
    axes = timeline.plot(title="long").axes[0]
    assert axes.get_title(loc="left") == "long: 120.00 from the middle of 1000.00 s"
    bars = sum(len(bars.get_paths()) for bars in axes.collections)
    assert bars == 2 * READABLE
    assert len(axes.texts) == 2 * READABLE, "and an arrow for each message"
    assert len(timeline.arrows()) == 2000


def test_a_short_run_is_drawn_whole():
    timeline = recorded_exchanges(READABLE)
    assert timeline.window() is None
    assert timeline.plot(title="short").axes[0].get_title(loc="left") == "short"


def test_bars_that_are_thinner_than_their_edges_have_none():
    def main(comm):
        comm.sendrecv(np.zeros(0), 1 - comm.rank, np.zeros(0), 1 - comm.rank)
        comm.sendrecv(np.ones(1), 1 - comm.rank, np.zeros(1), 1 - comm.rank)

    world = LocalWorld(Machine(latency=1.0, bandwidth=8e-4), record=True)
    launch(main, ranks=2, world=world)
    bars = Timeline(world.traces).plot().axes[0].collections
    widths = [width for row in bars for width in row.get_linewidth() if len(row.get_paths())]
    assert widths == [0.0, 0.4] * 2, "1 s and 10,000 s on each rank"


def test_a_picture_is_written(tmp_path):
    recorded("double_tree")[0].plot(tmp_path / "tree.png", "double tree")
    assert (tmp_path / "tree.png").stat().st_size > 5000


SCRIPT = """
import sys
import numpy as np
from minidist.collectives import ring
from minidist.comm import launch, print_once

print_once("argument", *sys.argv[1:])
launch(lambda comm: ring.all_reduce(comm, np.ones(8)), ranks=3)
launch(lambda comm: comm.barrier(), ranks=3)
"""


def test_minidist_trace_leaves_picture_and_json_of_every_launch(tmp_path, capfd):
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    assert cli(["trace", str(script), "--ranks", "5", "--out", str(out), "--", "hello"]) == 0
    assert "argument hello" in capfd.readouterr().out
    names = sorted(path.name for path in out.iterdir())
    assert names == ["trace-1.json", "trace-1.png", "trace-2.json", "trace-2.png"]
    events = json.loads((out / "trace-1.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == set(range(5))


def test_minidist_trace_says_what_is_missing(tmp_path, capsys):
    assert cli(["trace", str(tmp_path / "no.py")]) == 2
    assert "there is no script" in capsys.readouterr().err
    script = tmp_path / "idle.py"
    script.write_text("pass")
    assert cli(["trace", "--out", str(tmp_path), str(script)]) == 1
    assert "never called launch()" in capsys.readouterr().err


def test_tracing_alone_loads_no_plotting():
    code = "import sys, minidist.comm, minidist.collectives; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("ranks", [1, 3])
def test_computing_carries_its_flops(ranks, tmp_path):
    data = Dataset("x", np.ones((10, 6), np.float32), np.zeros(10, int), 4)

    def main(comm):
        method = DataParallel(mlp((6, 5, 4)), CrossEntropy(), SGD(0.1), comm)
        for step in range(2):  # only the second is recorded
            comm.trace.record = step == 1
            method.step(Batches(data, 10)[step])

    world = LocalWorld()
    launch(main, ranks=ranks, world=world)
    timeline = Timeline(world.traces)
    for rank, events in enumerate(timeline.events):
        rows = len(Batches(data, 10)[1].shard(rank, ranks))
        products = 6 * 5 + 5 * 4
        by_name = dict.fromkeys(("forward", "backward"), 0)
        for event in events:
            if event.flops:
                by_name[event.name] += event.flops
        assert by_name["forward"] == 2 * rows * products
        assert by_name["backward"] == 2 * rows * (products + 5 * 4), "none for the data's gradient"
        assert timeline.totals()[rank]["flops"] == sum(by_name.values())
    saved = json.loads(timeline.save(tmp_path / "trace.json").read_text())["traceEvents"]
    shown = sum(event["args"]["flops"] for event in saved if event["ph"] == "X")
    assert shown == 2 * 10 * (2 * products + 5 * 4)


def test_flops_of_steps_that_were_not_recorded_are_in_no_event():
    def main(comm):
        for recorded, flops in ((True, 1000), (False, 200), (True, 30), (True, 4)):
            comm.trace.record = recorded
            work.flops += flops
            comm.barrier()
        return [event.flops for event in comm.trace.events if event.kind == "compute"]

    # When recording begins, nobody knows what has been computed since the last call.
    assert launch(main, 1, LocalWorld()) == [[0, 0, 4]]
