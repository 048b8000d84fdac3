"""One failing rank must end the job: loudly, soon, and with a status that is not 0.

Under plain ``mpirun python script.py`` an exception on one rank leaves the others waiting for its
messages for ever. So ``launch`` runs the user's function inside ``abort_on_error``.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FORWARDING = 0.25  # seconds


@contextmanager
def abort_on_error(rank: int, size: int, abort: Callable[[int], None]) -> Iterator[None]:
    """Print what was raised inside, with the rank, and end every rank through ``abort(status)``.

    ``sys.exit`` counts: a rank that leaves alone would be waited for. Status 0 becomes 1, since
    the job did not finish.
    """
    try:
        yield
    except BaseException as error:
        status = 1
        if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code:
            status = error.code
        text = "".join(traceback.format_exception(error))
        sys.stdout.flush()
        sys.stderr.write(f"\nrank {rank} of {size} failed, so the whole job ends:\n{text}\n")
        sys.stderr.flush()
        # An abort kills the launcher's helpers too: give them time to pass the text on.
        time.sleep(FORWARDING)
        abort(status)
        raise
