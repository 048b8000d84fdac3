"""What the documents name is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"`(minidist(?:\.\w+)+)")


@pytest.mark.parametrize("document", ["docs/engine.md"])
def test_names_in_documents_exist(document):
    names = set(NAMED.findall((ROOT / document).read_text()))
    assert len(names) > 10
    for name in sorted(names):
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), f"{document} names {name}"


@pytest.mark.parametrize("document", ["docs/engine.md", "README.md"])
def test_links_in_documents_lead_somewhere(document):
    folder = (ROOT / document).parent
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
        assert (folder / link).exists(), f"{document} links to {link}"
