"""The files that ``minidist compare`` writes: compare.json, compare.md and compare.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minidist.comm.trace import Event
from minidist.compare.picture import draw
from minidist.compare.report import markdown


def try_folder(folder: str | Path) -> None:
    """Raise ValueError, with the reason, if files cannot be written there. For before training."""
    folder = Path(folder)
    probe = folder / ".minidist-can-write"
    taken = [path for path in _paths(folder) if path.is_dir()]
    if taken:
        raise ValueError(f"nothing can be written to {folder}: {taken[0].name} is a folder there")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"nothing can be written to {folder}: {error.strerror}") from error


def _paths(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "compare.json", folder / "compare.md", folder / "compare.png"


def save(
    report: dict[str, Any], timelines: dict[str, list[list[Event]]], folder: str | Path
) -> tuple[Path, ...]:
    """Write compare.json, compare.md and compare.png into ``folder``; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers, text, picture = _paths(folder)
    numbers.write_text(json.dumps(report, indent=1) + "\n")
    text.write_text(markdown(report))
    draw(report, timelines, picture)
    return numbers, text, picture
