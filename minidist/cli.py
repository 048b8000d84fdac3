"""The ``minidist`` command.

Each subcommand parses its arguments and calls a function that can also be called from Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from minidist import __version__
from minidist.comm.launcher import find_mpiexec, launched_size, mpi_environment
from minidist.comm.local.world import LocalWorld
from minidist.comm.mpi.world import MpiWorld
from minidist.run import command as run_command
from minidist.run.supervisor import start

# Benches parse their own arguments: the module with run(arguments), and a description.
BENCHES = {
    "collectives": (
        "minidist.bench.collectives",
        "every algorithm at every size, compared with the MPI library and plain messages",
    ),
    "engine": ("minidist.bench.engine", "a training step, against PyTorch's and the matmuls alone"),
    "scaling": ("minidist.bench.scaling", "samples a second on more ranks, against PyTorch's DDP"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="minidist",
        description="Distributed deep learning from scratch: every method of parallel training, "
        "readable and compared.",
    )
    parser.add_argument("--version", action="version", version=f"minidist {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="run a script on MPI ranks, and report what goes wrong")
    commands.add_parser("doctor", help="what this machine has for MPI, and what to do")
    _add_compare(commands)
    _add_trace(commands)
    _add_bench(commands)
    _add_plan(commands)
    _add_exercises(commands)
    _add_compress(commands)
    _add_generate(commands)
    if arguments[:1] == ["bench"] and arguments[1:2] and arguments[1] in BENCHES:
        return _bench(arguments)
    if arguments[:1] == ["run"]:
        return run_command.run(arguments[1:])
    if arguments[:1] == ["doctor"]:
        return run_command.run_doctor(arguments[1:])
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    options = parser.parse_args(own)
    options.arguments = arguments[len(own) + 1 :]  # of a script, after --
    try:
        return options.run(options, arguments)
    except ValueError as error:
        if launched_size() not in (None, 1) and MpiWorld().rank != 0:
            return 2
        print(f"minidist {options.command}: {error}", file=sys.stderr)
        return 2


def _add_compare(commands: argparse._SubParsersAction) -> None:
    from minidist.compare.comparison import TASKS
    from minidist.parallel import METHODS

    compare = commands.add_parser(
        "compare",
        help="train one model by every method, and compare",
        description="Train one model by every method, on the same data from the same seed, and "
        "compare: losses and parameters with serial training; bytes, messages, memory and idle "
        "time with the predictions of each method's formula. Writes compare.json and compare.png.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    compare.add_argument(
        "--methods", default="all", help=f"comma-separated, among: all, {', '.join(METHODS)}"
    )
    compare.add_argument(
        "--model", default="mlp", choices=sorted(TASKS), help="model to train, with its data"
    )
    compare.add_argument(
        "--ranks", type=int, default=argparse.SUPPRESS, help="how many ranks (default: 4)"
    )
    compare.add_argument(
        "--mesh",
        default="",
        help="add a row for this mesh, such as dp=2,pp=2,tp=2: it has the ranks",
    )
    compare.add_argument(
        "--world",
        choices=("auto", "local", "mpi"),
        default="auto",
        help="local: in this process, on a virtual clock; mpi: one process a rank; "
        "auto: mpi if an mpiexec is found",
    )
    compare.add_argument("--steps", type=int, default=50, help="training steps of each method")
    compare.add_argument("--batch", type=int, default=128, help="samples in the global batch")
    compare.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "float64"),
        help="dtype of parameters, data and messages",
    )
    compare.add_argument(
        "--seed", type=int, default=0, help="seed of the order of the data and all random numbers"
    )
    compare.add_argument("--out", default="out/compare", help="folder to write to")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.compare import comparison, report

    options.ranks = getattr(options, "ranks", None)
    # Raises before anything is launched.
    methods = comparison.names(options.methods, options.model, options.mesh)
    if options.mesh:
        options.ranks = _ranks_of(options.mesh, options.ranks, arguments)
    if options.ranks is not None and options.ranks < 1:
        raise ValueError(f"--ranks must be at least 1, not {options.ranks}")
    if not 1 <= options.batch <= 10000:
        raise ValueError(f"--batch must be 1 to 10000, the training images, not {options.batch}")
    launched = launched_size()
    mpiexec = find_mpiexec()
    if launched is None and (options.world == "mpi" or (options.world == "auto" and mpiexec)):
        return _start_mpi(options.ranks, arguments)
    if launched is not None and options.ranks not in (None, launched):
        raise ValueError(
            f"--ranks {options.ranks}, but a launcher has started {launched}: leave one of both out"
        )
    options.ranks = options.ranks or 4
    world = LocalWorld() if launched is None or options.world == "local" else MpiWorld()
    console = _console(quiet=isinstance(world, MpiWorld) and world.rank != 0)
    ranks = launched or options.ranks
    where = (
        f"{ranks} processes of {world.library}"
        if isinstance(world, MpiWorld)
        else f"{ranks} ranks in this process, virtual times"
        + ("" if mpiexec or options.world == "local" else ' (no mpiexec found: "minidist[mpich]")')
    )
    console.print(f"[bold]minidist {__version__}[/bold]  {world.name} world: {where}")
    with _Live(console, methods, options.steps) as live:
        result, timelines = comparison.compare(
            methods,
            options.model,
            options.ranks,
            world,
            options.steps,
            options.batch,
            options.dtype,
            options.seed,
            live.update,
            options.mesh,
        )
    if console.quiet:
        return 0
    paths = report.save(result, timelines, options.out)
    report.show(result, paths, console)
    cores = len(os.sched_getaffinity(0))
    if isinstance(world, MpiWorld) and ranks > cores:
        console.print(
            f"{ranks} ranks share {cores} cores, so seconds and idle time are not comparable; "
            "the predictions assume one core for each rank. Bytes, messages and memory are exact."
        )
    return 0


def _ranks_of(mesh: str, ranks: int | None, arguments: Sequence[str]) -> int:
    """How many ranks a mesh has; ValueError if ``--ranks`` says another number."""
    from math import prod

    from minidist.parallel.mesh.mesh import parse

    size = prod(parse(mesh).values())
    if any(one.startswith("--ranks") for one in arguments) and ranks != size:
        raise ValueError(f"--mesh {mesh} has {size} ranks, and --ranks says {ranks}")
    return size


def _add_trace(commands: argparse._SubParsersAction) -> None:
    trace = commands.add_parser(
        "trace",
        help="run a script, and draw the timelines of its ranks",
        description="Run a lesson or script. For each launch() in it, write a picture of the "
        "timelines of all ranks with their messages (trace-N.png; of a long run, its middle), and "
        "the whole trace for https://ui.perfetto.dev (trace-N.json). Arguments for the script "
        "follow after --.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    trace.add_argument("script", help="a Python file that calls minidist.launch")
    trace.add_argument(
        "--ranks",
        type=int,
        default=argparse.SUPPRESS,
        help="how many ranks (default: the script's own; with --world mpi: 4)",
    )
    trace.add_argument(
        "--world",
        choices=("local", "mpi"),
        default="local",
        help="local: in one process, on a virtual clock; mpi: one process a rank",
    )
    trace.add_argument(
        "--mesh", default="", help="for a script with --mesh: a mesh such as dp=2,pp=2,tp=2"
    )
    trace.add_argument("--out", default="out/trace", help="folder to write to")
    trace.set_defaults(run=_trace)


def _trace(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.comm.launcher import TRACE_FOLDER, TRACE_RANKS

    script, folder = Path(options.script), Path(options.out).resolve()
    if not script.is_file():
        raise ValueError(f"there is no script {script}")
    ranks = getattr(options, "ranks", None)
    if options.mesh:
        ranks = _ranks_of(options.mesh, ranks, arguments)
        options.arguments = ["--mesh", options.mesh, *options.arguments]
    if ranks is not None and ranks < 1:
        raise ValueError(f"--ranks must be at least 1, not {ranks}")
    for old in [*folder.glob("trace-*.json"), *folder.glob("trace-*.png")]:
        old.unlink()
    environment = mpi_environment() | {TRACE_FOLDER: str(folder)}
    command = [sys.executable, str(script), *options.arguments]
    if options.world == "mpi":
        status = start(command[1:], ranks or 4, threads=1, extra={TRACE_FOLDER: str(folder)})
    else:
        if ranks is not None:
            environment[TRACE_RANKS] = str(ranks)
        status = subprocess.run(command, env=environment, check=False).returncode
    found = sorted(folder.glob("trace-*"))
    for path in found:
        print(f"wrote {path}")
    if not found:
        print(f"minidist trace: {script} never called launch()", file=sys.stderr)
    return status or int(not found)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    bench = commands.add_parser("bench", help="measure this machine; compare with predictions")
    kinds = bench.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, (_, what) in BENCHES.items():
        kinds.add_parser(name, help=what)


def _bench(arguments: list[str]) -> int:
    """Run a bench on one thread, unless the user's environment says more.

    It runs in a new process, because libraries read the environment when they start.
    """
    environment = mpi_environment(os.environ.get("OMP_NUM_THREADS", 1))
    if launched_size() is None and os.environ != environment:
        command = [sys.executable, "-m", "minidist", *arguments]
        return subprocess.run(command, env=environment, check=False).returncode
    return import_module(BENCHES[arguments[1]][0]).run(arguments[2:])


def _add_plan(commands: argparse._SubParsersAction) -> None:
    plan = commands.add_parser(
        "plan",
        help="predict idle time and memory without running a model",
        description="Predict idle time and memory without running a model.",
    )
    what = plan.add_subparsers(dest="what", required=True, metavar="WHAT")
    pipeline = what.add_parser(
        "pipeline",
        help="every pipeline schedule: idle time, memory, picture",
        description="Predict time, idle share, memory and messages of every pipeline schedule, and "
        "draw all schedules on one time axis.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    pipeline.add_argument("--stages", type=int, default=4, help="parts of the model, one a rank")
    pipeline.add_argument(
        "--microbatches", type=int, default=8, help="parts of the batch, sent one after another"
    )
    pipeline.add_argument("--forward", type=float, default=1.0, help="time of a stage's forward")
    pipeline.add_argument(
        "--input-gradient", type=float, default=1.0, help="time of the backward for the input"
    )
    pipeline.add_argument(
        "--weight-gradient", type=float, default=1.0, help="time of the backward for the weights"
    )
    pipeline.add_argument("--message", type=float, default=0.0, help="time of a message")
    pipeline.add_argument("--out", default="out/plan", help="folder to write to")
    pipeline.set_defaults(run=_plan_pipeline)


def _plan_pipeline(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist import plan

    plans = plan.plan_pipeline(
        options.stages,
        options.microbatches,
        options.forward,
        options.input_gradient,
        options.weight_gradient,
        options.message,
    )
    console = _console(quiet=False)
    console.print(plan.table(plans, options.stages, options.microbatches))
    path = plan.draw(plans, options.stages, f"{options.out}/pipeline.png")
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return 0


def _add_compress(commands: argparse._SubParsersAction) -> None:
    from minidist.compress.choosing import GOALS
    from minidist.compress.experiment import COMPRESS_TASKS, RECIPES

    compress = commands.add_parser(
        "compress",
        help="make a trained model smaller in every way, and compare",
        description="Train a model, make it smaller in every way (pruning, quantization, low rank, "
        "distillation), fine-tune it, and compare: bytes on disk and in memory, parameters, FLOPs, "
        "measured seconds, quality. Writes compress.json, compress.png and the models as "
        "safetensors.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    compress.add_argument("--task", choices=sorted(COMPRESS_TASKS), default="cnn", help="the model")
    compress.add_argument(
        "--recipes",
        default="all",
        help="comma-separated parts of names, among: all, "
        + ", ".join(recipe.name.replace("%", "%%") for recipe in RECIPES),
    )
    compress.add_argument("--train-steps", type=int, default=1400, help="to train the original")
    compress.add_argument("--trained", help="or a safetensors file with its parameters")
    compress.add_argument("--steps", type=int, default=400, help="of fine-tuning, for each recipe")
    compress.add_argument("--goal", choices=list(GOALS), help="choose a model for this goal")
    compress.add_argument(
        "--lose",
        type=float,
        default=argparse.SUPPRESS,
        help="what the chosen model may lose (default: 1 point, or 0.05 nats)",
    )
    compress.add_argument("--seed", type=int, default=0, help="of all random numbers")
    compress.add_argument("--out", default="out/compress", help="folder to write to")
    compress.set_defaults(run=_compress)


def _compress(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.compress import experiment, files, report
    from minidist.compress.choosing import choose

    trained = None if options.trained is None else files.parameters(options.trained)
    lose = getattr(options, "lose", None)
    console = _console(quiet=False)
    bars = Progress(
        TextColumn("{task.description:32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        console=console,
        disable=not console.is_terminal,
    )
    shown: dict[str, TaskID] = {}

    def said(name: str, done: int, steps: int, loss: float) -> None:
        if name not in shown:
            shown[name] = bars.add_task(name, total=steps, loss="")
        bars.update(shown[name], completed=done, loss=f"{loss:.4f}")
        if not console.is_terminal and done == steps:
            console.print(f"{name:32} {steps} steps, loss {loss:.4f}")

    with bars:
        result, models = experiment.compress(
            options.task,
            options.recipes,
            options.train_steps,
            options.steps,
            trained,
            options.seed,
            said,
        )
    console.print(report.table(result))
    for line in report.advice(result, lose):
        console.print(line, highlight=False, soft_wrap=True)
    paths = report.save(result, models, options.out)
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if options.goal is not None:
        row = choose(result, options.goal, report.allowed(result, lose))
        console.print(f"for {options.goal}: {report.file_of(row['name'])}", soft_wrap=True)
    return 0


def _add_generate(commands: argparse._SubParsersAction) -> None:
    generate = commands.add_parser(
        "generate",
        help="continue prompts with a GPT, many at once",
        description="Continue prompts with a GPT on Shakespeare's characters that `minidist "
        "compress --task gpt` has written. Prompts come from a file, one a line, or from the "
        "terminal. Several are answered at once, and each is printed when it ends; one alone is "
        "printed letter by letter.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    generate.add_argument("--model", required=True, help="a safetensors file")
    generate.add_argument("--prompts", help="a text file; without it, lines from the terminal")
    generate.add_argument("--count", type=int, default=100, help="new characters of each answer")
    generate.add_argument("--temperature", type=float, default=0.8, help="0: the most likely")
    generate.add_argument("--top-k", type=int, default=20, help="among so many characters")
    generate.add_argument("--at-once", type=int, default=8, help="sequences in the batch at most")
    generate.add_argument("--seed", type=int, default=0, help="of the first prompt; then + 1 each")
    generate.set_defaults(run=_generate)


def _generate(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.data import Vocabulary, shakespeare_text
    from minidist.inference import Engine, Event, Request, load_gpt, run

    vocabulary = Vocabulary(shakespeare_text())
    engine = Engine(load_gpt(options.model), options.at_once)
    if engine.vocabulary != len(vocabulary):
        raise ValueError(
            f"{options.model} has {engine.vocabulary} tokens, and Shakespeare's text "
            f"{len(vocabulary)} characters: it was trained on something else"
        )
    if options.prompts is not None and not Path(options.prompts).is_file():
        raise ValueError(f"there is no file {options.prompts}")
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
    texts = list(prompts)

    def told(index: int, event: Event) -> None:
        letter = vocabulary.decode([event.token])
        texts[index] += letter
        if len(prompts) == 1:
            print(letter, end="" if not event.reason else "\n", flush=True)
        elif event.reason:
            print(f"── {index + 1} " + "─" * 60 + f"\n{texts[index]}", flush=True)

    if len(prompts) == 1:
        print(prompts[0], end="", flush=True)
    timing = run(engine, requests, told=told)
    for index, reason in timing.refused.items():
        print(f"minidist generate: prompt {index + 1} is refused: {reason}", file=sys.stderr)
    print(
        f"{timing.tokens} tokens in {timing.seconds:.2f} s: {timing.tokens_a_second:.0f} a second; "
        f"first token after {timing.first_token() * 1e3:.0f} ms, then "
        f"{timing.each_token() * 1e3:.1f} ms a token (99 %: {timing.each_token(99) * 1e3:.1f} ms)"
    )
    return int(bool(timing.refused))


def _add_exercises(commands: argparse._SubParsersAction) -> None:
    from minidist.exercises import command

    command.add(commands)


def _start_mpi(ranks: int | None, arguments: list[str]) -> int:
    """Run the same command on ``ranks`` processes, with this process's output."""
    terminal = {}
    if sys.stdout.isatty():  # behind mpiexec, stdout is a pipe and not the terminal
        terminal["MINIDIST_TERMINAL"] = str(shutil.get_terminal_size().columns)
    return start(["-m", "minidist", *arguments], ranks or 4, threads=1, extra=terminal)


def _console(quiet: bool) -> Console:
    """Use colours and progress bars only on a terminal, also if it is behind an mpiexec."""
    width = os.environ.get("MINIDIST_TERMINAL")
    if width:
        return Console(quiet=quiet, force_terminal=True, width=int(width))
    # Some launchers give ranks a terminal although the output of the launcher goes to a file.
    watched = sys.stdout.isatty() and launched_size() is None
    return Console(quiet=quiet, force_terminal=watched, width=None if watched else 170)


class _Live:
    """Show progress: a bar for each method or, without a terminal, a line when it is done."""

    def __init__(self, console: Console, methods: list[str], steps: int) -> None:
        self.console = console
        self.names = {key: key.replace("/", " ").replace("_", " ") for key in methods}
        self.width = width = max(map(len, self.names.values()))
        self.bars = Progress(
            TextColumn(f"{{task.description:{width}}}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )
        self.tasks = {
            key: self.bars.add_task(name, total=steps, loss="") for key, name in self.names.items()
        }

    def __enter__(self) -> _Live:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def update(self, key: str, done: int, steps: int, loss: float) -> None:
        self.bars.update(self.tasks[key], completed=done, loss=f"{loss:.4f}")
        if not self.console.is_terminal and done == steps:
            name = f"{self.names[key]:{self.width}}"
            self.console.print(f"{name} {done} steps, loss {loss:.4f}")
