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
        "compress --task gpt` has written. Prompts come from a file, one a line, or from the "
        "terminal. Several are answered at once, and each is printed when it ends; one alone is "
        "printed letter by letter. With --mesh on several ranks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    generate.add_argument("--model", required=True, help="a safetensors file")
    generate.add_argument("--prompts", help="a text file; without it, lines from the terminal")
    generate.add_argument("--count", type=int, default=100, help="new characters of each answer")
    generate.add_argument("--temperature", type=float, default=0.8, help="0: the most likely")
    generate.add_argument("--top-k", type=int, default=20, help="among so many characters")
    generate.add_argument("--at-once", type=int, default=8, help="sequences in the batch at most")
    generate.add_argument("--seed", type=int, default=0, help="of the first prompt; then + 1 each")
    generate.add_argument(
        "--mesh", default="", help="ranks: replicas, stages, parts of layers: dp=2,pp=2,tp=2"
    )
    generate.add_argument(
        "--world",
        choices=("auto", "local", "mpi"),
        default="auto",
        help="where the ranks of a mesh are: MPI processes if there is an mpiexec, or this one",
    )
    generate.set_defaults(run=answer)


def answer(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.inference import Engine, MeshEngine, Request, Timing, run, run_on
    from minidist.parallel.mesh.mesh import Mesh, parse

    ranks, launched = 1, launched_size()
    if options.prompts is not None and not Path(options.prompts).is_file():
        raise ValueError(f"there is no file {options.prompts}")
    model, vocabulary = load(options.model)  # what cannot be read ends here, before any launch
    if options.mesh:
        ranks = ranks_of(options.mesh, None, arguments)
        if launched is None and options.world != "local":
            if find_mpiexec() is not None:
                # What cannot be cut says so here, once, and not on every process.
                axes = parse(options.mesh)
                launch(lambda comm: MeshEngine(model, Mesh(comm, **axes)), ranks, LocalWorld())
                return on_mpi(ranks, options, arguments)
            if options.world == "mpi":
                raise ValueError("--world mpi needs an mpiexec: pip install 'minidist[mpich]'")
    if launched not in (None, ranks):
        mesh = f"--mesh {options.mesh}" if options.mesh else "no --mesh"
        raise ValueError(f"{mesh} has {ranks} ranks, and a launcher has started {launched}")
    lines = Path(options.prompts).read_text() if options.prompts is not None else sys.stdin.read()
    prompts = lines.splitlines()
    requests = [
        Request(
            tuple(vocabulary.encode(prompt).tolist()),
            options.count,
            options.temperature,
            options.top_k,
            options.seed + index,
        )
        for index, prompt in enumerate(prompts)
    ]
    told = Teller(vocabulary, prompts)
    if not options.mesh:
        told.begin()
        return told.end(run(Engine(model, options.at_once), requests, told=told))

    def main(comm: Comm) -> tuple[Timing, int]:
        if comm.rank == 0:
            told.begin()
        mesh = parse(options.mesh)
        timing = run_on(comm, model, requests, told=told, at_once=options.at_once, mesh=mesh)
        return timing if comm.rank == 0 else Timing(), comm.trace.sent.nbytes

    world = LocalWorld() if launched is None else MpiWorld()
    results = launch(main, ranks, world)
    if isinstance(world, MpiWorld) and world.rank != 0:
        return 0
    status = told.end(results[0][0])
    print(f"{options.mesh}: {sum(sent for _, sent in results):,} bytes between ranks")
    return status if launched is None else 0  # another status of one process would end the job


def on_mpi(ranks: int, options: argparse.Namespace, arguments: list[str]) -> int:
    """The same command on so many processes, which have no terminal to read prompts from."""
    if options.prompts is not None:
        return start_mpi(ranks, arguments)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompts:
        prompts.write(sys.stdin.read())
        prompts.flush()
        return start_mpi(ranks, [*arguments, "--prompts", prompts.name])


def load(path: str) -> tuple[Any, Vocabulary]:
    """The GPT in a file, and the letters that its tokens are."""
    from minidist.data import Vocabulary, shakespeare_text
    from minidist.inference import load_gpt

    vocabulary = Vocabulary(shakespeare_text())
    model = load_gpt(path)
    tokens = model.blocks["0"].weight.declared[0]
    if tokens != len(vocabulary):
        raise ValueError(
            f"{path} has {tokens} tokens, and Shakespeare's text {len(vocabulary)} characters: it "
            "was trained on something else"
        )
    return model, vocabulary


class Teller:
    """Prints answers: one alone letter by letter, several each when it ends."""

    def __init__(self, vocabulary: Vocabulary, prompts: list[str]) -> None:
        self.vocabulary, self.prompts, self.texts = vocabulary, prompts, list(prompts)

    def begin(self) -> None:
        if len(self.prompts) == 1:
            print(self.prompts[0], end="", flush=True)

    def __call__(self, index: int, event: Event) -> None:
        letter = self.vocabulary.decode([event.token])
        self.texts[index] += letter
        if len(self.prompts) == 1:
            print(letter, end="" if not event.reason else "\n", flush=True)
        elif event.reason:
            print(f"── {index + 1} " + "─" * 60 + f"\n{self.texts[index]}", flush=True)

    def end(self, timing: Timing) -> int:
        """Say what was refused, and how fast it was; the exit status."""
        for index, reason in timing.refused.items():
            print(f"minidist generate: prompt {index + 1} is refused: {reason}", file=sys.stderr)
        print(
            f"{timing.tokens} tokens in {timing.seconds:.2f} s: {timing.tokens_a_second:.0f} a "
            f"second; first token after {timing.first_token() * 1e3:.0f} ms, then "
            f"{timing.each_token() * 1e3:.1f} ms a token (99 %: {timing.each_token(99) * 1e3:.1f} "
            "ms)"
        )
        return int(bool(timing.refused))
