"""``minidist plan``: predict idle time and memory without running a model."""

from __future__ import annotations

import argparse

from minidist.cli.terminal import console_for


def add(commands: argparse._SubParsersAction) -> None:
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
    pipeline.add_argument(
        "--stages", type=int, default=4, help="number of stages: parts of the model, one a rank"
    )
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
    pipeline.set_defaults(run=run)


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    from minidist import plan

    plans = plan.plan_pipeline(
        options.stages,
        options.microbatches,
        options.forward,
        options.input_gradient,
        options.weight_gradient,
        options.message,
    )
    console = console_for(quiet=False)
    console.print(plan.table(plans, options.stages, options.microbatches))
    path = plan.draw(plans, options.stages, f"{options.out}/pipeline.png")
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    return 0
