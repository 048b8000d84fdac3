"""Helpers of several test folders are imported by their bare names."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "collectives")]
