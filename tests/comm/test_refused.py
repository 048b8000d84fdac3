"""What one world would take and the other not, or neither does right, is refused in words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minidist import LocalWorld, launch
from minidist.collectives import all_reduce, broadcast, reduce, scatter
from minidist.comm import CollectiveMismatch, CommError
from minidist.comm.environment import launched_size
from minidist.comm.tuning import load_table

ALIGNED = np.zeros(33, np.uint8)
REFUSED = {
    "a NumPy scalar": (np.float64(3), {}, "takes an array, not float64"),
    "a number": (3.0, {}, "takes an array, not float"),
    "no dimension": (np.array(3.0), {}, "has no dimension"),
    "big-endian": (np.zeros(3, ">f8"), {}, "byte order is not this machine's"),
    "unaligned": (ALIGNED[1:].view(np.float64)[:3], {}, "not aligned"),
    "a tag that is no integer": (np.zeros(3), {"tag": 1.0}, "the tag 1.0 must be a whole number"),
    "a tag that is too large": (np.zeros(3), {"tag": 1 << 15}, "from 0 to 32767"),
    "a negative tag": (np.zeros(3), {"tag": -1}, "the tag -1"),
    "a rank that is no integer": (np.zeros(3), {"to": 1.0}, "1.0: ranks are 0 to 1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_messages(what):
    array, options, text = REFUSED[what]

    def main(comm):
        settings = {"to": 1 - comm.rank} | options
        with pytest.raises(CommError, match=text):
            comm.send(array, **settings)
        with pytest.raises(CommError, match=text):
            comm.isend(array, **settings)
        peer = settings.pop("to")
        with pytest.raises(CommError, match=text):
            comm.recv(array, peer, **settings)
        if "tag" not in options and "to" not in options:
            with pytest.raises(CommError, match=text):
                all_reduce(comm, array, algorithm="ring")

    launch(main, 2, LocalWorld())


@pytest.mark.parametrize("root", [2, -1, 1.0, None, True])
def test_a_root_that_is_no_rank(root):
    def main(comm):
        for collective in (broadcast, scatter, reduce):
            with pytest.raises(CommError, match="ranks are 0 to 1"):
                collective(comm, np.zeros(4), root=root)

    launch(main, 2, LocalWorld())


CALLS = {
    "shape": lambda comm, x: all_reduce(comm, x[: 4 - comm.rank]),
    "dtype": lambda comm, x: all_reduce(comm, x.astype(("f8", "i8")[comm.rank])),
    "reduction": lambda comm, x: all_reduce(comm, x, op=("sum", "max")[comm.rank]),
    "algorithm": lambda comm, x: all_reduce(comm, x, algorithm=("ring", "central")[comm.rank]),
    "operation": lambda comm, x: (all_reduce, broadcast)[comm.rank](comm, x),
    "root": lambda comm, x: broadcast(comm, x, root=comm.rank),
    "order": lambda comm, x: [
        call(comm, x) for call in (all_reduce, broadcast)[:: 1 - 2 * comm.rank]
    ],
    "barrier": lambda comm, x: comm.barrier() if comm.rank else all_reduce(comm, x),
    "user": lambda comm, x: all_reduce(comm, x, algorithm=(mine, "ring")[comm.rank]),
}


def mine(comm, array, op):
    """A user's own algorithm."""


@pytest.mark.parametrize("what", CALLS)
def test_ranks_that_call_different_collectives_are_told_who_called_what_where(what):
    with pytest.raises(CollectiveMismatch) as told:
        launch(lambda comm: CALLS[what](comm, np.ones(4)), 2, LocalWorld())
    text = str(told.value)
    assert "rank 0 has called" in text, text
    assert "rank 1 has called" in text, text
    assert text.count("test_refused.py:") == 2, text


def test_messages_that_nobody_receives_or_sends():
    def send(comm):
        if comm.rank == 1:
            comm.isend(np.zeros(3), 0, tag=5)

    def receive(comm):
        if comm.rank == 1:
            comm.irecv(np.zeros(3), 0, tag=5)

    with pytest.raises(CommError, match=r"On rank 1: nobody received send\(float64\[3\], to=0"):
        launch(send, 2, LocalWorld())
    with pytest.raises(CommError, match=r"On rank 1: nobody sent recv\(float64\[3\], source=0"):
        launch(receive, 2, LocalWorld())


def test_sys_exit_on_one_rank_is_no_success(capsys):
    def main(comm):
        if comm.rank == 1:
            raise SystemExit(0)
        comm.barrier()

    with pytest.raises(SystemExit) as left:
        launch(main, 3, LocalWorld())
    assert left.value.code == 1
    assert "rank 1 of 3 left by sys.exit" in capsys.readouterr().err


LAUNCHED = {
    "nothing": ({}, None),
    "MPICH": ({"PMI_SIZE": "4", "PMI_RANK": "1"}, 4),
    "Open MPI": ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
    "srun --mpi=pmi2": ({"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4", "PMI_FD": "9"}, 4),
    "srun without PMI": ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, 4),  # then refused
    "a shell's leftover": ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
    "srun --pty": ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "7", "PMI_SIZE": "1",
                    "PMI_RANK": "0"}, None),
    "mpiexec in srun --pty": ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PTY_PORT": "7",
                               "PMI_SIZE": "2", "HYDI_CONTROL_FD": "9"}, 2),
    "srun -n 1 --mpi=pmix": ({"SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"}, 1),
}  # fmt: skip


@pytest.mark.parametrize("what", LAUNCHED)
def test_leftovers_of_a_scheduler_are_told_from_a_launcher(what):
    environment, size = LAUNCHED[what]
    assert launched_size(environment) == size


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{", '{"MPICH": [1]}', '{"MPICH": {"2": [[1]]}}', '{"MPICH": {"2": 3}}']
)
def test_a_tuning_file_of_another_form_is_named_and_ignored(text, tmp_path, monkeypatch):
    path = tmp_path / "tuning.json"
    path.write_text(text)
    monkeypatch.setenv("MINIDIST_TUNING", str(path))
    with pytest.warns(UserWarning, match=f"tuning file {path}.*ignored"):
        assert load_table("MPICH") is None
    path.write_text(json.dumps({"MPICH": {"2": [[8, "ring"]]}}))
    assert load_table("MPICH") == {"2": [[8, "ring"]]}
