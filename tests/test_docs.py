"""What the documents name is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from minidist.cli import main
from minidist.comm.launcher import mpi_environment

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"`(minidist(?:\.\w+)+)")


@pytest.mark.parametrize("document", ["docs/engine.md"])
def test_names_in_documents_exist(document):
    names = set(NAMED.findall((ROOT / document).read_text()))
    assert len(names) > 10
    for name in sorted(names):
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), f"{document} names {name}"


@pytest.mark.parametrize(
    "document",
    [
        "docs/checkpoints.md",
        "docs/engine.md",
        "docs/collectives.md",
        "docs/scaling.md",
        "docs/smaller.md",
        "docs/private.md",
        "docs/federated.md",
        "docs/explain.md",
        "README.md",
        "CONTRIBUTING.md",
    ],
)
def test_links_in_documents_lead_somewhere(document):
    folder = (ROOT / document).parent
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text()):
        assert (folder / link).exists(), f"{document} links to {link}"


def test_the_program_in_the_readme_trains(capsys):
    program = re.search(r"```python\n(.*?launch.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(program[1], {})
    printed = re.findall(r"step (\d+): loss (.*)", capsys.readouterr().out)
    assert [int(step) for step, _ in printed] == list(range(0, 100, 10))
    first, last = float(printed[0][1]), float(printed[-1][1])
    assert first > 2.2 and last < 0.9, printed


@pytest.mark.parametrize(
    "command",
    [
        "compare",
        "trace",
        "plan pipeline",
        "bench collectives",
        "bench engine",
        "bench scaling",
        "compress",
        "generate",
    ],
)
def test_every_option_of_a_command_says_what_it_is(command, capsys, monkeypatch):
    for name, value in mpi_environment().items():  # or a bench starts another process
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    options = capsys.readouterr().out.partition("\noptions:\n")[2]
    for entry in re.split(r"\n(?=  -)", options.rstrip()):
        assert re.search(r"(\S  +|\n {10,})\w", entry), f"{command}: {entry.strip()} has no help"
