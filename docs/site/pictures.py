"""Show a picture of each lesson in the repository: ``python -m docs.site.pictures [FOLDER]``.

Takes the first picture that each lesson has left in FOLDER (out/lessons, where a lesson that is run
leaves its pictures), makes it small, and writes lessons/README.md: titles, first paragraphs and
pictures. A lesson that was not run keeps the picture that it has.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from minidist.cli.lessons import title

ROOT = Path(__file__).parents[2]
WIDTH = 900
HEAD = """# Lessons

Python programs, to be read from top to bottom and run: `python lessons/06_all_reduce.py`; from
lesson 5 on mostly also `mpirun -n 4 python lessons/06_all_reduce.py`. As notebooks:
`jupytext --to notebook lessons/*.py`. `make docs` builds pages with everything that they print and
draw. `scripts/` has a short program for each method, to copy from.

Lessons keep their numbers, and new ones come at the end, so the order of reading is another one: 0
to 4, 23 (attention), 5, 6, 26 (which all-reduce), 7, 21 (large batches), 8, 9, 25 (talking less
often), 10, 22 (nobody waits), 11 to 18, 24 (data that stays), then the rest. Each says at its top
which lessons it needs, and about how many minutes it takes to read and run it, without its
exercises; the minutes are estimated.

This page is written by `python -m docs.site.pictures`, after lessons were run.
"""


def first_paragraph(lesson: Path) -> str:
    """What a lesson says under its title."""
    lines = lesson.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# # ")) + 2
    end = next(n for n in range(start, len(lines)) if lines[n] in ("#", "", "# %%"))
    text = "\n".join(line[2:] for line in lines[start:end])
    return text.removesuffix(":") + "." * text.endswith(":")  # a list follows there, not here


def main(folder: Path) -> None:
    target = ROOT / "docs" / "images" / "lessons"
    target.mkdir(parents=True, exist_ok=True)
    text = [HEAD]
    for lesson in sorted((ROOT / "lessons").glob("[0-9]*.py")):
        into = target / f"{lesson.stem}.png"
        for found in sorted(folder.glob(f"{lesson.stem[:3]}*.png"))[:1]:
            picture = Image.open(found).convert("RGB")
            picture.thumbnail((WIDTH, WIDTH))
            picture.quantize(64).save(into, optimize=True)
        text.append(f"## [{title(lesson)}]({lesson.name})\n\n{first_paragraph(lesson)}\n")
        if into.exists():
            text.append(f"![{title(lesson)}](../docs/images/lessons/{into.name})\n")
    (ROOT / "lessons" / "README.md").write_text("\n".join(text))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "out" / "lessons")
