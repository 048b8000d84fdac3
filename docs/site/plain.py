"""The project's docstrings, which are plain text, as reStructuredText.

A paragraph stays one; what is indented is a drawing or a table of formulas, and is shown as it is;
double backticks mean code, *stars* stress a word; and no other character means anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import dedent
from typing import Any

CODE = re.compile(r"(``.+?``|(?<!\w)\*\w[^*\n]{0,40}?\*(?!\w))", re.S)
MEANS_SOMETHING = re.compile(r"([\\*`|]|_(?=\W|$)|(?<!\w)_)")


def to_rst(lines: Sequence[str]) -> list[str]:
    """A docstring's lines for Sphinx."""
    return list(_convert(dedent("\n".join(lines)).split("\n")))


def _convert(lines: Sequence[str]) -> Iterator[str]:
    number, in_list = 0, False
    while number < len(lines):
        line = lines[number]
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            yield ""
            number += 1
        elif (indent >= 4 and not in_list) or line.startswith(">>> "):
            end = number
            while end < len(lines) and (
                not lines[end].strip() or lines[end].startswith((" ", ">>> "))
            ):
                end += 1
            block = dedent("\n".join(lines[number:end])).strip("\n").split("\n")
            yield from ("", ".. code-block:: text", "", *(f"   {one}".rstrip() for one in block))
            yield ""
            number = end
        else:
            end = number
            while end < len(lines) and lines[end].strip():
                item = lines[end].lstrip().startswith(("- ", "* "))
                if end > number and not in_list and not item and lines[end].startswith("    "):
                    break
                if end == number:
                    in_list = item or (in_list and indent >= 2)
                end += 1
            text = lines[number:end] if in_list else [one.strip() for one in lines[number:end]]
            yield from escape("\n".join(text)).split("\n")
            number = end


def escape(text: str) -> str:
    """Text in which nothing but ``code`` and *stress* means anything."""
    pieces = CODE.split(text)
    found = ""
    for piece in pieces:
        if CODE.fullmatch(piece):
            found += "\\ " * found[-1:].isalnum() + piece  # ``word``s: markup must end at its end
        elif found and piece[:1].isalnum():
            found += "\\ " + _without_meaning(piece)
        else:
            found += _without_meaning(piece)
    return found


def _without_meaning(piece: str) -> str:
    return MEANS_SOMETHING.sub(r"\\\1", piece)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _docstring)
    return {"parallel_read_safe": True}


def _docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rst(lines)
