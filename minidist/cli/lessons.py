"""``minidist lessons``: list the lessons, or copy them to a folder.

An installed package has them in ``minidist/lessons``; the repository has them in ``lessons``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import minidist


def add(commands: argparse._SubParsersAction) -> None:
    lessons = commands.add_parser(
        "lessons",
        help="list the lessons, or copy them to a folder",
        description="List the lessons, or copy them, with the scripts, to a folder of yours. "
        "They are Python programs that also open as notebooks (jupytext).",
    )
    lessons.add_argument("--copy", metavar="DIR", help="write lessons and scripts to this folder")
    lessons.set_defaults(run=run)


def folder() -> Path:
    """The folder of the lessons. Raises ValueError if this installation has none."""
    inside = Path(minidist.__file__).parent
    for found in (inside / "lessons", inside.parent / "lessons"):
        if (found / "scripts" / "train.py").exists():
            return found
    raise ValueError(f"this installation has no lessons, neither in {inside} nor beside it")


def title(lesson: Path) -> str:
    """The first heading of a lesson, such as "6. All-reduce, seven ways"."""
    lines = lesson.read_text("utf-8").splitlines()
    return next((line[4:] for line in lines if line.startswith("# # ")), lesson.stem)


def copy(target: str | Path) -> list[Path]:
    """Copy lessons and scripts to ``target``, except files that it has already.

    Returns the files that were written. Raises ValueError if they cannot be.
    """
    source, target = folder(), Path(target)
    written = []
    try:
        for one in sorted([*source.glob("*.py"), *source.glob("*/*.py")]):
            into = target / one.relative_to(source)
            if not into.exists():
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(one, into)
                written.append(into)
    except OSError as error:
        raise ValueError(f"cannot write to {target}: {error}") from None
    return written


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.copy is None:
        for lesson in sorted(folder().glob("[0-9]*.py")):
            print(f"{lesson.stem:30} {title(lesson)}")
        print("\nminidist lessons --copy DIR writes them, and the scripts, to a folder")
        return 0
    written = copy(options.copy)
    print(f"wrote {len(written)} files to {options.copy}; existing files were not changed")
    return 0
