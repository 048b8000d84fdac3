"""``minidist generate``: continue prompts with a GPT, many at once."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minidist.cli.terminal import ranks_of, start_mpi
from minidist.comm.launcher import find_mpiexec, launch, launched_size
from minidist.comm.local.world import LocalWorld
from minidist.comm.mpi.world import MpiWorld

if TYPE_CHECKING:
    from minidist.comm.comm import Comm
    from minidist.data import Vocabulary
    from minidist.inference import Event, Timing


def add(commands: argparse._SubParsersAction) -> None:
    generate = commands.add_parser(
        "generate",
        help="continue prompts with a GPT, many at once",
        description="Continue prompts with a GPT on Shakespeare's characters that `minidist "
        "compress --task gpt` has written. Prompts come from a file, one on each line, or from "
        "the terminal. Several are continued at once, and each is printed when it is complete; a "
        "single one is printed letter by letter. With --mesh on several ranks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    generate.add_argument("--model", required=True, help="a safetensors file")
    generate.add_argument("--prompts", help="a text file; without it, lines from the terminal")
    generate.add_argument("--count", type=int, default=100, help="new characters of each answer")
    generate.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the most likely character"
    )
    generate.add_argument(
        "--top-k", type=int, default=20, help="sample among this number of likely characters"
    )
    generate.add_argument(
        "--at-once", type=int, default=8, help="largest number of sequences in a batch"
    )
    generate.add_argument(
        "--seed", type=int, default=0, help="seed of the first prompt; the next has seed + 1"
    )
    generate.add_argument(
        "--mesh", default="", help="replicas, stages and parts of layers: dp=2,pp=2,tp=2"
    )
    generate.add_argument(
        "--world",
        choices=("auto", "local", "mpi"),
        default="auto",
        help="ranks of a mesh: local: in this process; mpi: one process each; auto: mpi if an "
        "mpiexec is found",
    )
    generate.set_defaults(run=answer)


def answer(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.inference import Engine, MeshEngine, Request, Timing, run, run_on
    from minidist.parallel.mesh.mesh import Mesh, parse

    ranks, launched = 1, launched_size()
    if options.prompts is not None and not Path(options.prompts).is_file():
        raise ValueError(f"there is no file {options.prompts}")
    model, vocabulary = load(options.model)  # before any launch, so that an error appears once
    if options.mesh:
        ranks = ranks_of(options.mesh, None, arguments)
        if launched is None and options.world != "local":
            if find_mpiexec() is not None:
                # If the model cannot be cut, the error appears here, once.
                axes = parse(options.mesh)
                launch(lambda comm: MeshEngine(model, Mesh(comm, **axes)), ranks, LocalWorld())
                return on_mpi(ranks, options, arguments)
            if options.world == "mpi":
                raise ValueError("--world mpi needs an mpiexec: pip install 'minidist[mpich]'")
    if launched not in (None, ranks):
        mesh = f"--mesh {options.mesh}" if options.mesh else "no --mesh"
        raise ValueError(f"{mesh} needs {ranks} ranks, but a launcher has started {launched}")
    printer, requests = Printer(vocabulary, read_prompts(options.prompts)), list[Request]()
    for index, prompt in enumerate(printer.prompts):
        try:
            tokens = tuple(vocabulary.encode(prompt).tolist())
        except ValueError as error:
            printer.refused[index] = str(error)
            continue
        printer.places.append(index)
        settings = options.count, options.temperature, options.top_k, options.seed + index
        requests.append(Request(tokens, *settings))
    if not options.mesh:
        printer.begin()
        return printer.end(run(Engine(model, options.at_once), requests, told=printer))

    def main(comm: Comm) -> tuple[Timing, int]:
        if comm.rank == 0:
            printer.begin()
        mesh = parse(options.mesh)
        timing = run_on(comm, model, requests, told=printer, at_once=options.at_once, mesh=mesh)
        return timing if comm.rank == 0 else Timing(), comm.trace.sent.nbytes

    world = LocalWorld() if launched is None else MpiWorld()
    results = launch(main, ranks, world)
    if isinstance(world, MpiWorld) and world.rank != 0:
        return 0
    status = printer.end(results[0][0])
    print(f"{options.mesh}: {sum(sent for _, sent in results):,} bytes between ranks")
    return status if launched is None else 0  # under MPI any other status would abort the job


def read_prompts(path: str | None) -> list[str]:
    """The lines of a file, or of the terminal. Raises ValueError if there is no text."""
    try:
        text = sys.stdin.read() if path is None else Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        where = "what was typed" if path is None else path
        raise ValueError(f"{where} is no text in UTF-8: {error}") from error
    prompts = text.splitlines()
    if not prompts:
        where = "from the terminal" if path is None else f"in {path}"
        raise ValueError(f"there are no prompts {where}: write one on each line")
    return prompts


def on_mpi(ranks: int, options: argparse.Namespace, arguments: list[str]) -> int:
    """Run the same command on ``ranks`` processes; prompts from the terminal go into a file."""
    lines = read_prompts(options.prompts)  # so that an error appears once
    if options.prompts is not None:
        return start_mpi(ranks, arguments)
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as prompts:
        prompts.write("\n".join(lines))
        prompts.flush()
        return start_mpi(ranks, [*arguments, "--prompts", prompts.name])


def load(path: str) -> tuple[Any, Vocabulary]:
    """The GPT in a file, and its vocabulary. Raises ValueError if they do not fit."""
    from minidist.data import Vocabulary, shakespeare_text
    from minidist.inference import load_gpt

    vocabulary = Vocabulary(shakespeare_text())
    model = load_gpt(path)
    tokens = model.blocks["0"].weight.declared[0]
    if tokens != len(vocabulary):
        raise ValueError(
            f"{path} has {tokens} tokens, but Shakespeare's text has {len(vocabulary)} characters: "
            "the model was trained on other data"
        )
    return model, vocabulary


class Printer:
    """Prints the texts: a single one letter by letter, each of several when it is complete."""

    def __init__(self, vocabulary: Vocabulary, prompts: list[str]) -> None:
        self.vocabulary, self.prompts, self.texts = vocabulary, prompts, list(prompts)
        self.places: list[int] = []  # the prompt of each request
        self.refused: dict[int, str] = {}  # prompts without a request, with the reason

    def begin(self) -> None:
        if len(self.prompts) == 1:
            print(self.prompts[0], end="", flush=True)

    def __call__(self, index: int, event: Event) -> None:
        letter, place = self.vocabulary.decode([event.token]), self.places[index]
        self.texts[place] += letter
        if len(self.prompts) == 1:
            print(letter, end="" if not event.reason else "\n", flush=True)
        elif event.reason:
            print(f"── {place + 1} " + "─" * 60 + f"\n{self.texts[place]}", flush=True)

    def end(self, timing: Timing) -> int:
        """Print the refused prompts and the speed; returns the exit status."""
        refused = self.refused | {self.places[i]: why for i, why in timing.refused.items()}
        for index, reason in sorted(refused.items()):
            print(f"minidist generate: prompt {index + 1} is refused: {reason}", file=sys.stderr)
        if not timing.tokens:
            return int(bool(refused))
        print(
            f"{timing.tokens} tokens in {timing.seconds:.2f} s: {timing.tokens_a_second:.0f} a "
            f"second; first token after {timing.first_token() * 1e3:.0f} ms, then "
            f"{timing.each_token() * 1e3:.1f} ms a token (99 %: {timing.each_token(99) * 1e3:.1f} "
            "ms)"
        )
        return int(bool(refused))
