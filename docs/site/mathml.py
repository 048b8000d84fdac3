"""Formulas as MathML: browsers draw it by themselves, without a script and without a network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


def draw(translator: Any, node: Any, block: bool) -> None:
    text = node.astext()
    try:
        found = tex2mathml(text, as_block=block)
    except MathError as error:
        LOGGER.warning("the formula %s cannot be drawn: %s", text, error, location=node)
        found = f"<code>{translator.encode(text)}</code>"
    translator.body.append(f'<div class="math">{found}</div>' if block else found)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer(
        "mathml",
        (lambda translator, node: draw(translator, node, block=False), None),
        (lambda translator, node: draw(translator, node, block=True), None),
    )
    return {"parallel_read_safe": True}
