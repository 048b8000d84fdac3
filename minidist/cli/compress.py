"""``minidist compress``: make a trained model smaller in several ways, and compare."""

from __future__ import annotations

import argparse

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from minidist.cli.terminal import console_for


def add(commands: argparse._SubParsersAction) -> None:
    from minidist.compress.choosing import GOALS
    from minidist.compress.experiment import COMPRESS_TASKS, RECIPES

    compress = commands.add_parser(
        "compress",
        help="make a trained model smaller in several ways, and compare",
        description="Train a model, make it smaller in several ways (pruning, quantization, low "
        "rank, distillation), fine-tune it, and compare: bytes on disk and in memory, parameters, "
        "FLOPs, measured seconds, quality. Writes compress.json, compress.png and the models as "
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
    compress.add_argument(
        "--train-steps", type=int, default=1400, help="training steps of the original model"
    )
    compress.add_argument(
        "--trained", help="in place of training: a safetensors file of parameters"
    )
    compress.add_argument("--steps", type=int, default=400, help="fine-tuning steps of each recipe")
    compress.add_argument("--goal", choices=list(GOALS), help="choose a model for this goal")
    compress.add_argument(
        "--lose",
        type=float,
        default=argparse.SUPPRESS,
        help="how much quality the chosen model may lose (default: 1 point, or 0.05 nats)",
    )
    compress.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    compress.add_argument("--out", default="out/compress", help="folder to write to")
    compress.set_defaults(run=run)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist.compress import experiment, files, report
    from minidist.compress.choosing import choose

    trained = None if options.trained is None else files.parameters(options.trained)
    lose = getattr(options, "lose", None)
    console = console_for(quiet=False)
    bars = Progress(
        TextColumn("{task.description:32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        console=console,
        disable=not console.is_terminal,
    )
    shown: dict[str, TaskID] = {}

    def progress(name: str, done: int, steps: int, loss: float) -> None:
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
            progress,
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
