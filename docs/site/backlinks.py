"""Take away the links of source pages that lead nowhere.

Sphinx's ``viewcode`` links each function in a source page back to its documentation, under the name
of the first module that asked for the file. A function that is documented under another module's
name, as those of ``minidist.ops`` are, has no such place there; and a module written in C no page.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

# A link back, or an entry in the list of modules.
BACK = re.compile(r'<a( class="viewcode-back")? href="([^"#:]+)(?:#([^"]*))?">([^<]*)</a>')


def prune(html: Path) -> int:
    """Remove them from the pages under ``html``/_modules; returns how many there were."""
    removed = 0

    @cache
    def places(page: Path) -> frozenset[str] | None:
        if not page.exists():
            return None
        return frozenset(re.findall(r'\bid="([^"]+)"', page.read_text()))

    for path in sorted((html / "_modules").rglob("*.html")):

        def kept(link: re.Match[str], folder: Path = path.parent) -> str:
            nonlocal removed
            back, page, place, text = link.groups()
            found = places((folder / page).resolve())
            if found is not None and (not place or place in found):
                return link[0]
            removed += 1
            return "" if back else text

        old = path.read_text()
        new = BACK.sub(kept, old)
        if new != old:
            path.write_text(new)
    return removed
