"""Build the site: ``python -m docs.site.build`` (``make docs``), into out/docs/html.

Cards and API are generated into docs/generated, Sphinx builds all pages, with lessons executed
(what has not changed comes from a cache), and the pages are checked.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from docs.site import api, backlinks, breaks, cards, check

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "docs"


def main(arguments: list[str]) -> int:
    started = time.perf_counter()
    os.chdir(ROOT)
    # Kernels of lessons find the package here, and draw without a window.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    generated = ROOT / "docs" / "generated"
    shutil.rmtree(generated, ignore_errors=True)
    api.write(generated)
    cards.write(generated)

    from sphinx.cmd.build import main as sphinx

    options = ["-b", "html", "-c", "docs", "-d", str(OUT / "doctrees")]
    options += ["-W", "--keep-going", "-q", "-j", "2"]
    failed = sphinx([*options, *arguments, str(ROOT), str(OUT / "html")])
    if failed:
        return failed
    (OUT / "html" / "index.html").write_text(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>minidist</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="refresh" content="0; url=docs/index.html"></head>'
        '<body><a href="docs/index.html">minidist</a></body></html>\n'
    )
    backlinks.prune(OUT / "html")
    breaks.soften(OUT / "html")
    wrong = check.check(OUT / "html")
    for line in wrong:
        print(line)
    pages = len(list((OUT / "html").rglob("*.html")))
    print(f"{pages} pages in {OUT / 'html'}, {len(wrong)} faults, "
          f"{time.perf_counter() - started:.0f} s")  # fmt: skip
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
