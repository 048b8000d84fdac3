"""One rank of ``minidist run``: calls the supervisor, runs the script, and says that it is done.

    mpiexec -n 4 python -m minidist.run.rank script.py arguments

The line to the supervisor is open before the script and MPI start, and the mark that this rank has
finished is sent when MPI is down. A rank that ends in any other way has no mark, whatever its
status.
"""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from minidist.comm import link
from minidist.comm.environment import launched_size, rank_in_environment
from minidist.run.input import read_by_this_rank


def main() -> None:
    """Run the script, or with ``-m`` the module, that the arguments name."""
    rank = rank_in_environment()
    if rank == 0:
        read_by_this_rank()
    supervisor = link.open_line(rank)
    ending = {"status": 0}
    if supervisor is not None:
        # The first to be registered is called last: after MPI's end.
        atexit.register(lambda: supervisor.done(ending["status"]))

        def ignored(found: Any) -> None:
            """An exception in a function of ``atexit``: Python itself would leave with status 0."""
            sys.__unraisablehook__(found)
            if "atexit" in (found.err_msg or "") and found.exc_value is not None:
                ending["status"] = 1
                text = "".join(traceback.format_exception(found.exc_value))
                supervisor.failed(f"rank {rank} failed at its end:\n{text}", 1)

        sys.unraisablehook = ignored
        launched = launched_size() or 1
        wanted = int(os.environ.get("MINIDIST_RANKS", launched))
        if launched != wanted:
            supervisor.failed(
                f"{wanted} ranks were asked for, and this process was started as one of "
                f"{launched}: the launcher (srun --pty, or srun without --mpi) passes no number of "
                "ranks, or that of an interactive shell. Use the mpiexec of mpi4py's MPI, or "
                "srun --mpi=pmi2",
                2,
            )
            sys.exit(2)
    del sys.argv[0]
    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            sys.path.insert(0, "")
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        ending["status"] = status = (
            error.code if isinstance(error.code, int) else int(error.code is not None)
        )
        if status and supervisor is not None:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f" ({error.code})" if isinstance(error.code, str) else ""
            supervisor.failed(
                f"rank {rank} left with status {status}{said}, at {where.filename}:{where.lineno}",
                status,
            )
        raise
    except BaseException:
        ending["status"] = 1  # sys.excepthook reports it, and ends the job
        raise


if __name__ == "__main__":
    main()
