"""Run every lesson as a notebook; each must show a picture.

python -m tests.long.notebooks
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

LESSONS = Path(__file__).parents[2] / "lessons"


def execute(path: Path, folder: Path) -> list[dict[str, Any]]:
    """What the cells of a percent script put out when a kernel runs them in ``folder``."""
    import jupytext
    import nbclient

    notebook = jupytext.read(path)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def main() -> int:
    """Returns 1 if a lesson shows no picture; raises what a lesson raises."""
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    without = []
    for path in sorted(LESSONS.glob("*.py")):
        with tempfile.TemporaryDirectory() as folder:
            outputs = execute(path, Path(folder))
        pictures = sum("image/png" in output.get("data", {}) for output in outputs)
        print(f"{path.stem}: {pictures} pictures", flush=True)
        without += [] if pictures else [path.stem]
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main())
