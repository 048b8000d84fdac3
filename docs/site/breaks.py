"""Let the names in headings and in lists of pages break after a dot or an underscore.

A phone breaks a word that is longer than its line anywhere: "minidist.parallel.gradie" and
"nt_compression" below it. With ``<wbr>`` it breaks where a part of the name ends. The text is still
the name, to be searched for and copied.
"""

from __future__ import annotations

import re
from pathlib import Path

PLACES = re.compile(
    r"<h([1-6])\b[^>]*>.*?</h\1>"
    r'|<div class="title">[^<]*</div>'  # the page before, or the next one
    r'|<a class="[^"]*\breference internal"[^>]*>[^<]*</a>',  # in the list of all pages
    re.S,
)
TEXT = re.compile(r"(?<=>)[^<]+")  # between two tags
WITHIN = re.compile(r"(?<=\w[._])(?=\w)")


def soften(html: Path) -> int:
    """Do it in all pages under ``html``; returns how many have changed."""
    changed = 0
    for path in html.rglob("*.html"):
        old = path.read_text()
        new = PLACES.sub(lambda place: TEXT.sub(softened, place[0]), old)
        if new != old:
            path.write_text(new)
            changed += 1
    return changed


def softened(text: re.Match[str]) -> str:
    """Text with a place to break after each dot and underscore inside a word."""
    return WITHIN.sub("<wbr>", text[0])
