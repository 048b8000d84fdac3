"""Run the same tests several times, and stop at the first failure.

python -m tests.long.again TIMES PATH...
"""

from __future__ import annotations

import subprocess
import sys


def main(times: int, paths: list[str]) -> int:
    """Status of the first run that fails, or 0."""
    for number in range(1, times + 1):
        print(f"run {number} of {times}", flush=True)
        status = subprocess.run([sys.executable, "-m", "pytest", *paths], check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
