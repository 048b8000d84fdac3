"""One failing rank must end the job: soon, with its error, and with a status that is not 0.

Under plain ``mpirun python script.py`` an exception on one rank leaves the others waiting for its
messages for ever. So ``launch`` runs the user's function inside ``abort_on_error``, and in a
process that a launcher has started ``import minidist`` sets ``sys.excepthook``, for exceptions
outside.

A job that ``minidist run`` has started has a supervisor: it is told what has failed, asks the other
ranks what they do, and prints one report for all. See ``minidist/run``.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minidist.comm import link

FORWARDING = 0.25  # seconds
GRACE = 5.0  # seconds that printing and aborting may take


@contextmanager
def abort_on_error(rank: int, size: int, abort: Callable[[int], None]) -> Iterator[None]:
    """Print what was raised inside, with the rank, and end every rank through ``abort(status)``.

    ``sys.exit`` counts: the other ranks would wait for a rank that exits alone. Status 0 becomes 1,
    since the job did not finish.
    """
    try:
        yield
    except BaseException as error:
        fail(f"rank {rank} of {size}", error, abort)
        raise


def fail(who: str, error: BaseException, abort: Callable[[int], None]) -> None:
    """End the job because of ``error``."""
    status = 1
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code:
        status = error.code
    text = "".join(traceback.format_exception(error))
    end(f"{who} failed, so the whole job ends:\n{text}", status, abort)


def end(text: str, status: int, abort: Callable[[int], None]) -> None:
    """Say why, and end the job; or this process, if neither can be done."""
    last_resort(GRACE)
    supervisor = link.current()
    if supervisor is not None and supervisor.failed(text, status):
        abort(status)
        return
    sys.stdout.flush()
    sys.stderr.write(f"\n{text}\n")
    sys.stderr.flush()
    # An abort kills the launcher's helpers too: give them time to pass the text on.
    time.sleep(FORWARDING)
    abort(status)


def supervised() -> bool:
    """Whether ``minidist run`` has started this process."""
    return link.current() is not None


def kill(status: int) -> None:
    """End this process by a signal: all launchers notice that, even before MPI has started."""
    os.kill(os.getpid(), signal.SIGKILL)


def last_resort(seconds: float) -> None:
    """End this process in ``seconds``, whatever its threads, its launcher and the network do.

    By a signal; and if a call holds Python's lock for ever, by a thread of C's, with status 1.
    """
    timer = threading.Timer(seconds, kill, (1,))
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + 1, exit=True, file=open(os.devnull, "w"))  # noqa: SIM115
