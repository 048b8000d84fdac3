"""Sphinx's settings. The sources are the repository's own files, so that links lead alike in both.

``python -m docs.site.build`` (``make docs``) generates the pages of methods and of the API first.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from minidist import __version__  # noqa: E402

project, author, release = "minidist", "The minidist developers", __version__
copyright = "The minidist developers, MIT licence"
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "lessons/[0-9]*.py",
    "lessons/README.md",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
exclude_patterns = ["docs/site", "docs/conf.py", "minidist", "tests", "out", ".*"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "docs.site.plain",
    "docs.site.mathml",
]

# Lessons are percent scripts, run once; a second build takes what has not changed from the cache.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "out" / "docs" / "cache")
nb_execution_timeout = 1800  # seconds a cell, on a busy machine
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # what a lesson writes is thrown away
nb_merge_streams = True
nb_ipywidgets_js = {}  # nothing is loaded from elsewhere

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
# A short name in a signature may be found in two modules; the link then takes the first.
suppress_warnings = ["ref.python"]

autodoc_member_order = "bysource"
autoclass_content = "both"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
add_module_names = False
html_math_renderer = "mathml"

highlight_language = "none"
html_theme = "furo"
html_title = f"minidist {release}"
html_static_path = ["site/static"]
html_css_files = ["minidist.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "tango"
pygments_dark_style = "monokai"


def setup(app: Any) -> None:
    app.connect("source-read", files_that_are_no_pages)


def files_that_are_no_pages(app: Any, name: str, source: list[str]) -> None:
    """Links to scripts and notices: those files are no pages of the site, but can be downloaded."""
    file = r"(?:\.\./)*(?:lessons/scripts|minidist)/[\w/]+\.(?:py|md)"
    link = re.compile(rf"\[([^\]]+)\]\(({file})\)")
    source[0] = link.sub(lambda found: f"{{download}}`{plain(found[1])} <{found[2]}>`", source[0])


def plain(text: str) -> str:
    """Without backticks, which would end the role."""
    return text.replace("`", "")
