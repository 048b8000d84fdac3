"""What is wrong with built pages: dead links, empty pages and pictures, raw TeX, errors, foreign
addresses.

python -m docs.site.check out/docs/html
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

TEX = re.compile(r"\\(frac|cdot|sum|text|left|begin|mathrm|sqrt|leftarrow)\b|\$\$|\$\\|\\\(|\\\[")
ERROR = re.compile(r"Traceback \(most recent call last\)|\w+Error: ")
LESSON = re.compile(r"lessons/\d\d_\w+\.html$")


class Page(HTMLParser):
    """What a page links to, which places it has, and what it says outside of code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []  # by itself: pictures, styles, scripts
        self.places: set[str] = set()
        self.phone = False
        self.text: list[str] = []
        self.outputs: list[str] = []
        self._code = 0
        self._output = 0
        self._skip = 0
        self.pictures = 0
        self.article, self.says = False, ""  # what its article says below the heading
        self._article = self._heading = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.places |= {str(given[name]) for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if tag in ("img", "script", "iframe", "source") and given.get("src"):
            self.loads.append(str(given["src"]))
            self.pictures += tag == "img"
        if tag == "link" and given.get("href") and given.get("rel") in ("stylesheet", "icon"):
            self.loads.append(str(given["href"]))
        self.phone |= tag == "meta" and given.get("name") == "viewport"
        self._code += tag in ("pre", "code")
        self._skip += tag in ("script", "style")
        self.article |= tag == "article"
        self._article |= tag == "article"
        self._heading |= tag == "h1"
        if tag == "div" and (self._output or "cell_output" in str(given.get("class"))):
            self._output += 1

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("pre", "code")
        self._skip -= tag in ("script", "style")
        self._output -= tag == "div" and self._output > 0
        self._article &= tag != "article"
        self._heading &= tag != "h1"

    def handle_data(self, data: str) -> None:
        if self._output:
            self.outputs.append(data)
        if not self._code and not self._skip:
            self.text.append(data)
        if self._article and not self._heading:
            self.says += data.strip()


def check(folder: Path) -> list[str]:
    """One line for each fault in the pages of ``folder``."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html"))}
    wrong = [
        f"{path.relative_to(folder.resolve())}: {fault}"
        for path, page in pages.items()
        for fault in faults(path, page, pages)
    ]
    for name in ("searchindex.js", "search.html", "docs/index.html"):
        if not (folder / name).exists():
            wrong.append(f"{name} is missing")
    return wrong


def faults(path: Path, page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    if not page.phone:
        yield "no viewport: a phone would show it as wide as a screen"
    if page.article and not page.says and not page.pictures:
        yield "nothing below its heading"
    for link in page.links:
        if not urlsplit(link).scheme and (fault := dead(path, link, page, pages)):
            yield fault
    for loaded in page.loads:
        where = urlsplit(loaded)
        if where.scheme == "data":
            continue
        if where.scheme or where.netloc:
            yield f"loads {loaded} from elsewhere"
            continue
        file = (path.parent / unquote(where.path)).resolve()
        if not file.exists() or not file.stat().st_size:
            yield f"{loaded} is missing or empty"
        elif file.suffix == ".png" and empty(file):
            yield f"{loaded} is a picture of one colour"
    if found := TEX.search(" ".join(page.text)):
        yield f"raw TeX: {found[0]}"
    if found := ERROR.search(" ".join(page.outputs)):
        yield f"an error in what a cell printed: {found[0]}"
    if LESSON.search(path.as_posix()) and not page.pictures:
        yield "a lesson without a picture"


def dead(path: Path, link: str, page: Page, pages: dict[Path, Page]) -> str | None:
    where = urlsplit(link)
    file = (path.parent / unquote(where.path)).resolve() if where.path else path
    if not file.exists():
        return f"the link {link} leads nowhere"
    place = unquote(where.fragment)
    if place and file in pages and place not in pages[file].places:
        return f"the link {link}: there is no such place on the page"
    return None


def empty(picture: Path) -> bool:
    from matplotlib.image import imread

    return bool(np.ptp(imread(picture)) == 0)


if __name__ == "__main__":
    found = check(Path(sys.argv[1]))
    print("\n".join(found) or "no faults")
    sys.exit(bool(found))
