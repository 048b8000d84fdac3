"""The local world: its clock, its ports, its order, and what it says when a program is wrong."""

from __future__ import annotations

import gc
import inspect
import tracemalloc

import numpy as np
import pytest
import strict

from minidist.collectives import recursive_doubling, ring
from minidist.comm import CommError, Deadlock, LocalWorld, Machine, launch
from minidist.comm.comm import ANY
from minidist.engine.array import work

MACHINE = Machine("test", latency=1.0, bandwidth=8.0, reduce_bandwidth=4.0, flops=10.0)
EIGHT = np.arange(1.0)  # 8 bytes: one second of latency, and one of bandwidth


def run(function, ranks=2, machine=MACHINE, record=False):
    return launch(function, ranks=ranks, world=LocalWorld(machine, record))


def line_of(function, text):
    """The line number at which ``text`` stands in the source of ``function``."""
    lines, start = inspect.getsourcelines(function)
    return start + next(index for index, line in enumerate(lines) if text in line)


# Deadlocks


def test_both_send_first_is_a_deadlock_that_names_ranks_calls_and_lines():
    def main(comm):
        mine, other = np.zeros(3, np.float32), np.zeros(3, np.float32)
        comm.send(mine, 1 - comm.rank, tag=7)
        comm.recv(other, 1 - comm.rank, tag=7)

    with pytest.raises(Deadlock) as caught:
        run(main)
    text = str(caught.value)
    line = line_of(main, "comm.send")
    assert "2 of 2 ranks wait" in text
    for rank in (0, 1):
        expected = (
            f'  rank {rank}: send(float32[3], to={1 - rank}, tag=7), at {__file__}:{line} in "main"'
        )
        assert expected in text, f"got\n{text}\nexpected\n{expected}"
    assert "let one side receive first" in text


def test_a_missing_participant_is_reported_by_those_who_wait():
    def main(comm):
        if comm.rank != 2:
            comm.barrier()

    with pytest.raises(
        Deadlock, match=r"2 of 3 ranks(.|\n)*barrier\(\), where only ranks \[0, 1\]"
    ):
        run(main, ranks=3)


def test_a_receive_from_anyone_that_nobody_answers():
    with pytest.raises(Deadlock, match=r"rank 0: recv\(float64\[1\], source=ANY, tag=0\)"):
        run(lambda comm: comm.recv(np.zeros(1)) if comm.rank == 0 else None)


def test_another_tag_is_another_message():
    def main(comm):
        if comm.rank == 0:
            comm.send(EIGHT, 1, tag=1)
        else:
            comm.recv(np.zeros(1), 0, tag=2)

    with pytest.raises(Deadlock, match=r"tag=1(.|\n)*tag=2"):
        run(main)


def test_a_collective_on_one_stream_that_the_other_rank_never_spawns():
    def main(comm):
        if comm.rank == 0:
            comm.spawn(lambda stream: stream.recv(np.zeros(1), 1)).wait()

    with pytest.raises(Deadlock, match=r"rank 0 \(stream\): recv"):
        run(main)


# Exceptions


def test_an_exception_ends_all_ranks_and_says_where():
    ended = []

    def main(comm):
        try:
            if comm.rank == 2:
                raise KeyError("lost")
            comm.recv(np.zeros(1), 2)
        finally:
            ended.append(comm.rank)

    with pytest.raises(KeyError, match="lost") as caught:
        run(main, ranks=3)
    assert caught.value.__notes__ == ["raised on rank 2 of 3, local world"]
    assert sorted(ended) == [0, 1, 2]


def test_sys_exit_on_one_rank_is_passed_on():
    def main(comm):
        if comm.rank == 1:
            raise SystemExit(3)
        comm.barrier()

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert caught.value.code == 3


def test_no_ranks_is_an_error():
    with pytest.raises(ValueError, match="at least one rank, not 0"):
        run(lambda comm: None, ranks=0)


# Bad messages


def send_to_other(array):
    def main(comm):
        if comm.rank == 0:
            comm.send(array, 1)
        else:
            comm.recv(np.zeros(3), 0)

    return main


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ([1.0, 2.0, 3.0], r"rank 0: send to 1 takes an array, not list: wrap numbers with numpy"),
        (3.0, r"takes an array, not float"),
        (np.zeros((3, 2))[:, 0], r"array of shape \(3,\) is not contiguous: copy it"),
        (np.array([None, 1, 2]), r"arrays of objects cannot be sent"),
        (np.zeros(4), r"rank 0 sends float64\[4\] and rank 1 receives float64\[3\] \(tag 0\)"),
        (np.zeros(3, "f4"), r"rank 0 sends float32\[3\] and rank 1 receives float64\[3\]"),
    ],
)
def test_what_cannot_be_sent(array, message):
    with pytest.raises(CommError, match=message):
        run(send_to_other(array))


def read_only():
    array = np.zeros(3)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (read_only(), "rank 0: recv from 1: the array is read-only"),
        (np.zeros((3, 2))[:, 0], "not contiguous: receive into a contiguous one and copy"),
        ([0.0], "takes an array, not list"),
    ],
)
def test_what_cannot_be_received_into(array, message):
    with pytest.raises(CommError, match=message):
        run(lambda comm: comm.recv(array, 1) if comm.rank == 0 else comm.send(np.zeros(3), 0))


@pytest.mark.parametrize("peer", (2, -2, ANY))
def test_a_peer_that_does_not_exist(peer):
    with pytest.raises(CommError, match=rf"rank 0: send to {peer}: ranks are 0 to 1"):
        run(lambda comm: comm.send(EIGHT, peer) if comm.rank == 0 else None)


WHOLE = np.zeros(8)
ON_DEVICE = strict.asarray(np.zeros(8))


@pytest.mark.parametrize(
    ("send", "recv"),
    [
        (WHOLE, WHOLE),
        (WHOLE, WHOLE[:]),
        (WHOLE[:5], WHOLE[3:]),
        (WHOLE.reshape(2, 4), WHOLE),
        (WHOLE[1:3].view("f4"), WHOLE.view("u1")),
        (ON_DEVICE, ON_DEVICE),
        (ON_DEVICE[:5], ON_DEVICE[3:]),
    ],
)
def test_what_is_sent_and_received_at_once_must_not_overlap(send, recv):
    with pytest.raises(CommError, match=r"rank 0: sendrecv to 1 and from 1: the two .* overwrite"):
        run(lambda comm: comm.sendrecv(send, 1 - comm.rank, recv, 1 - comm.rank))


@pytest.mark.parametrize("array", [np.arange(8.0), strict.asarray(np.arange(8.0))])
def test_neighbours_in_one_array_may_be_sent_and_received_at_once(array):
    def main(comm):
        mine = array.copy()
        comm.sendrecv(mine[:4], 1 - comm.rank, mine[4:], 1 - comm.rank)
        comm.sendrecv(mine[:0], 1 - comm.rank, mine[:0], 1 - comm.rank)  # nothing overlaps nothing
        return [float(x) for x in mine]

    assert run(main) == [[0.0, 1.0, 2.0, 3.0] * 2] * 2


@pytest.mark.parametrize("sends", ("numpy", "strict"))
def test_a_message_from_the_host_to_a_device_is_an_error(sends):
    def main(comm):
        on_host = (sends == "numpy") == (comm.rank == 0)
        array = np.zeros(3) if on_host else strict.asarray(np.zeros(3))
        comm.send(array, 1) if comm.rank == 0 else comm.recv(array, 0)

    other = {"numpy": "strict", "strict": "numpy"}[sends]
    with pytest.raises(CommError, match=f"0 sends an array of {sends} and .* into one of {other}"):
        run(main)


@pytest.mark.parametrize(
    "other", [np.zeros(3, "f4"), np.zeros(3, int), strict.asarray(np.zeros(3))]
)
def test_what_is_combined_must_be_alike(other):
    with pytest.raises(CommError, match=r"combine of .*\[3\] into numpy float64\[3\]: both must"):
        run(lambda comm: comm.combine("sum", np.zeros(3), other))


def test_a_read_only_array_can_be_sent():
    def main(comm):
        buffer = np.ones(3)
        if comm.rank == 0:
            comm.send(read_only(), 1)
        else:
            comm.recv(buffer, 0)
        return buffer.sum()

    assert run(main) == [3.0, 0.0]


def test_ranks_that_meet_at_different_places():
    with pytest.raises(
        CommError, match=r"rank 0 has called barrier\(\), .*rank 1 has called split\(\), "
    ):
        run(lambda comm: comm.split(0) if comm.rank else comm.barrier())


# Time


def test_a_message_takes_latency_and_bytes_over_bandwidth_on_both_sides():
    def main(comm):
        if comm.rank == 0:
            comm.send(np.zeros(2), 1)
        else:
            comm.recv(np.zeros(2), 0)
        return comm.time()

    assert run(main) == [3.0, 3.0]


def test_a_port_carries_one_message_at_a_time():
    """Two messages into one rank: the second waits for the port."""

    def main(comm):
        if comm.rank == 0:
            requests = [comm.irecv(np.zeros(1), source) for source in (1, 2)]
            for request in requests:
                request.wait()
        else:
            comm.send(EIGHT, 0)
        return comm.time()

    assert sorted(run(main, ranks=3)) == [2.0, 4.0, 4.0]


def test_both_directions_at_once_take_no_longer_than_one():
    def main(comm):
        comm.sendrecv(EIGHT, 1 - comm.rank, np.zeros(1), 1 - comm.rank)
        return comm.time()

    assert run(main) == [2.0, 2.0]


def test_computing_and_combining_are_charged_and_a_straggler_pays_more():
    def main(comm):
        work.flops += 20
        between = comm.time()
        comm.combine("sum", np.zeros(1), np.ones(1))
        return between, comm.time()

    machine = Machine("test", 1.0, 8.0, 4.0, 10.0, slowdown={1: 3.0})
    assert run(main, machine=machine) == [(2.0, 4.0), (6.0, 8.0)]


def test_a_straggler_is_waited_for():
    def main(comm):
        work.flops += 10
        comm.barrier()
        return comm.time()

    assert run(main, ranks=3, machine=Machine(flops=10.0, slowdown={2: 5.0})) == [5.0] * 3


def test_an_isend_leaves_the_rank_free_to_compute():
    def main(comm):
        if comm.rank == 0:
            request = comm.isend(np.zeros(8), 1)  # nine seconds
            work.flops += 90
            request.wait()
        else:
            comm.recv(np.zeros(8), 0)
        return comm.time()

    assert run(main) == [9.0, 9.0]


def test_a_request_can_be_tested():
    def main(comm):
        if comm.rank == 0:
            request = comm.irecv(np.zeros(1), 1)
            answers = [request.test()]
            work.flops += 30
            answers.append(request.test())
            request.wait()
            return answers
        comm.send(EIGHT, 0)
        return None

    assert run(main)[0] == [False, True]


# Order


def test_receive_from_anyone_takes_the_earliest_and_is_the_same_in_every_run():
    def main(comm):
        if comm.rank == 0:
            buffer = np.zeros(1)
            return [(comm.recv(buffer), buffer[0]) for _ in range(3)]
        work.flops += 100 * (4 - comm.rank)  # rank 3 is ready first
        comm.send(np.array([comm.rank * 1.0]), 0)
        return None

    runs = [run(main, ranks=4)[0] for _ in range(3)]
    assert runs[0] == [(3, 3.0), (2, 2.0), (1, 1.0)], runs[0]
    assert runs[1:] == runs[:2]


def test_messages_between_two_ranks_do_not_overtake():
    def main(comm):
        got = []
        for number in range(5):
            if comm.rank == 0:
                comm.send(np.array([number]), 1)
            else:
                buffer = np.zeros(1, int)
                comm.recv(buffer, 0)
                got.append(int(buffer[0]))
        return got

    assert run(main)[1] == [0, 1, 2, 3, 4]


# Groups and streams


def test_split_orders_by_key_and_keeps_messages_apart():
    def main(comm):
        part = comm.split(comm.rank % 2, key=-comm.rank)
        mine, other = np.array([comm.rank]), np.zeros(1, int)
        part.sendrecv(mine, 1 - part.rank, other, 1 - part.rank)
        return part.rank, part.size, int(other[0])

    assert run(main, ranks=4) == [(1, 2, 2), (1, 2, 3), (0, 2, 0), (0, 2, 1)]


def test_what_is_sent_in_a_group_is_counted_on_the_rank():
    def main(comm):
        part = comm.split(0)
        part.sendrecv(EIGHT, 1 - part.rank, np.zeros(1), 1 - part.rank)
        return comm.trace.sent.messages, comm.trace.sent.nbytes

    assert run(main) == [(1, 8), (1, 8)]


def test_a_spawned_exchange_overlaps_with_computing_and_gives_its_result():
    def exchange(stream, mine):
        other = np.zeros_like(mine)
        stream.sendrecv(mine, 1 - stream.rank, other, 1 - stream.rank)
        return other.sum()

    def main(comm):
        future = comm.spawn(exchange, np.full(8, comm.rank + 1.0))  # nine seconds
        work.flops += 70
        return future.wait(), comm.time(), comm.trace.sent.nbytes

    assert run(main) == [(16.0, 9.0, 64), (8.0, 9.0, 64)]


def test_spawned_functions_run_in_order():
    def main(comm):
        done = []
        futures = [comm.spawn(lambda stream, n=n: done.append(n)) for n in range(3)]
        for future in futures:
            future.wait()
        return done

    assert run(main) == [[0, 1, 2]] * 2


def test_messages_of_a_stream_and_of_the_rank_never_meet():
    def main(comm):
        if comm.rank == 0:
            comm.spawn(lambda stream: stream.send(np.array([1.0]), 1))
            comm.send(np.array([2.0]), 1)
            return None
        buffer = np.zeros(1)
        comm.recv(buffer, 0)
        got = [buffer[0]]
        comm.spawn(lambda stream: stream.recv(buffer, 0)).wait()
        return [*got, buffer[0]]

    assert run(main)[1] == [2.0, 1.0]


# Many ranks


@pytest.mark.slow
def test_memory_grows_with_the_data_and_not_with_the_square_of_the_ranks():
    def peak(ranks):
        gc.collect()
        tracemalloc.start()
        launch(lambda comm: ring.all_reduce(comm, np.ones(512)), ranks, LocalWorld())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(40), peak(120)
    assert many < 3.3 * few, f"{few:,} bytes at 40 ranks, {many:,} at three times as many"


def test_recursive_doubling_on_four_thousand_ranks():
    def main(comm):
        array = np.full(1, comm.rank)
        recursive_doubling.all_reduce(comm, array)
        return int(array[0])

    world = LocalWorld(MACHINE)
    assert set(launch(main, 4096, world)) == {4096 * 4095 // 2}
    assert world.seconds == pytest.approx(12 * (1 + 8 / 8 + 8 / 4), rel=1e-9)


# The trace


def test_totals_by_step_and_events_with_peer_and_bytes():
    def main(comm):
        with comm.step("hello"):
            comm.sendrecv(EIGHT, 1 - comm.rank, np.zeros(1), 1 - comm.rank)
        return comm.trace.totals(), comm.trace.events

    totals, events = run(main, record=True)[0]
    assert totals["by_step"] == {"hello": {"messages": 1, "bytes": 8}}
    (event,) = [event for event in events if event.kind == "sendrecv"]
    assert (event.name, event.start, event.end, event.nbytes, event.peer) == ("hello", 0, 2, 8, 1)


def test_nothing_is_recorded_unless_asked():
    assert run(lambda comm: (comm.barrier(), comm.trace.events)[1]) == [[], []]


def test_views_of_one_buffer_are_no_two_arrays():
    """Each has a base of its own, and yet they are the same memory."""

    def main(comm):
        memory = bytearray(64)
        out, into = np.frombuffer(memory, np.float64), np.frombuffer(memory, np.float64)
        comm.sendrecv(out, 1 - comm.rank, into, 1 - comm.rank)

    with pytest.raises(CommError, match="the two arrays share memory"):
        run(main, ranks=2)
