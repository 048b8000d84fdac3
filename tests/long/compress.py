"""What compression must show, on models that have been trained for real: see JOBS in run.py.

    python -m tests.long.compress cnn        # half the channels, a tenth of the weights, int8
    python -m tests.long.compress gpt        # int8 and int4 on a language model
    python -m tests.long.compress distil     # a small model with and without a teacher, 5 seeds
    python -m tests.long.compress lora       # the language model learns another text, on two ranks

Each prints its figures and fails if one is worse than it must be. The original is trained once, and
kept in out/long/compress for the other part that needs it and for a second call; ``--trained FILE``
takes another one. With ``--tiny`` a few steps are done, and nothing is asked of the figures: to see
that it works.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console

from minidist import Tensor, launch, no_grad
from minidist.comm import Comm
from minidist.compress import adapt, adapted_names, files, fit, merge, report, soft_cross_entropy
from minidist.compress.experiment import COMPRESS_TASKS, compress
from minidist.data import Batch, Batches, shakespeare_text, split_tokens, token_windows
from minidist.inspect import mean_loss
from minidist.models import cnn, mlp
from minidist.nn import CrossEntropy, Module
from minidist.ops import cross_entropy
from minidist.optim import Adam
from minidist.parallel import DataParallel

OUT = "out/long/compress"
TRAIN, TINY_TRAIN = 3000, 3  # steps of the original


class Run:
    """How much is trained, and whether figures must be good."""

    def __init__(self, trained: str | None, tiny: bool) -> None:
        self.trained, self.tiny = trained, tiny
        self.out = f"{OUT}/tiny" if tiny else OUT

    def steps(self, full: int, tiny: int = 2) -> int:
        return tiny if self.tiny else full

    def original(self, task: str) -> dict[str, np.ndarray]:
        """The parameters of a trained model; trained now, unless they are in a file."""
        if self.trained is not None:
            return files.parameters(self.trained)
        path = Path(self.out) / f"{task}.safetensors"
        if not path.exists():
            chosen = COMPRESS_TASKS[task]
            model, steps = chosen.model().init(0), self.steps(TRAIN, TINY_TRAIN)

            fit(
                model,
                chosen.batches(0),
                steps,
                chosen.lr,
                progress=partial(said, "the original"),
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            files.save(path, model)
        return files.parameters(path)

    def must(self, holds: bool, what: object) -> None:
        """Fail unless it holds."""
        print(f"{'holds' if holds else 'FAILS'}: {what}", flush=True)
        assert holds or self.tiny, what


def said(name: str, done: int, steps: int, loss: float) -> None:
    if done % 200 == 0 or done == steps:
        print(f"{name}: {done} of {steps} steps, loss {loss:.4f}", flush=True)


def compared(run: Run, task: str, steps: int) -> dict[str, Any]:
    """Run all recipes, show and save the result; returns the rows by name."""
    given = run.original(task)
    result, models = compress(task, "all", steps=run.steps(steps), trained=given, said=said)
    Console(width=170).print(report.table(result))
    print(*report.advice(result), sep="\n")
    report.save(result, models, f"{run.out}/{task}")
    return {row["name"]: row for row in result["rows"]}


def run_cnn(run: Run) -> None:
    rows = compared(run, "cnn", steps=1500)
    original, half = rows["the original"], rows["half of channels, units, heads"]
    run.must(original["after"] >= 90, original)
    run.must(half["lost"] <= 1 and half["seconds"] * 2 <= original["seconds"], half)
    tenth = rows["nine tenths zero, gradually"]
    few = tenth["parameters"] <= 0.105 * original["parameters"]
    run.must(tenth["lost"] <= 3 and few, tenth)
    int8 = rows["int8 per channel"]
    run.must(int8["lost"] <= 0.3 and int8["disk"] <= 0.26 * original["disk"], int8)


def run_gpt(run: Run) -> None:
    rows = compared(run, "gpt", steps=400)
    original = rows["the original"]
    run.must(original["parameters"] <= 1e6 and original["after"] <= 1.75, original)
    for name, most in (("int8 weights in groups", 0.01), ("int4 weights in groups", 0.1)):
        run.must(rows[name]["lost"] <= most, rows[name])


def run_distil(run: Run) -> None:
    """The same small MLP, the same data in the same order, with and without a teacher.

    Without augmentation: 10,000 images are few for so many steps, and the MLP alone learns them by
    heart. As the images never change, the teacher's logits are computed once.
    """
    task, steps, seeds = COMPRESS_TASKS["cnn"], run.steps(5000), run.steps(5)
    teacher, training = cnn().init(0).load(run.original("cnn")), task.data()[0]
    print(f"teacher: {task.judge(teacher):.2f} %")
    with no_grad():
        logits = np.concatenate([teacher(part.inputs).data for part in training.chunks()])

    def taught_loss(student: Module, batch: Batch) -> Tensor:
        z = student(batch.inputs)
        count = batch.count(CrossEntropy())
        soft = soft_cross_entropy(z, Tensor(logits[batch.indices]), 2.0, count)
        return 0.5 * cross_entropy(z, batch.targets, count) + 0.5 * soft

    alone, taught = [], []
    for seed in range(seeds):
        for loss, found in (({}, alone), ({"loss": taught_loss}, taught)):
            student = mlp((784, 64, 10)).init(seed)
            fit(student, Batches(training, 100, seed), steps, task.lr, **loss)
            found.append(task.judge(student))
        print(f"seed {seed}: alone {alone[-1]:.2f} %, distilled {taught[-1]:.2f} %", flush=True)
    gains = [after - before for before, after in zip(alone, taught, strict=True)]
    for name, values in (("alone", alone), ("distilled", taught), ("gain", gains)):
        print(f"{name}: {mean(values):.2f} ± {stdev(values):.2f} (standard deviation)")
    run.must(mean(gains) > 2 * stdev(gains) / seeds**0.5, gains)


def run_lora(run: Run, rank: int = 4) -> None:
    """The GPT learns another text, in capitals, on two ranks; the bytes are those of a formula."""
    task, alpha, steps = COMPRESS_TASKS["gpt"], 8.0, run.steps(150)
    training = task.data()[0]
    base = task.model().init(0).load(run.original("gpt"))
    learn, exam = split_tokens(training.encode(shakespeare_text()[:300_000].upper()))
    other = token_windows("capitals", learn, 128, 63, stride=11)
    held_out = token_windows("capitals", exam, 128, 63, stride=256)

    def adapted(comm: Comm) -> tuple[dict, int, int]:
        model = adapt(task.model(), rank, alpha)
        method = DataParallel(model, CrossEntropy(), Adam(3e-3), comm)
        method.load_parameters(method.parameters() | adapted_names(model, base.state()))
        before, batches = comm.trace.sent.nbytes, Batches(other, 16)
        for step in range(steps):
            said("capitals", step + 1, steps, method.step(batches[step]))
        return method.parameters(), comm.trace.sent.nbytes - before, method.model.flat.size

    (found, sent, size), (_, also, _) = launch(adapted, 2)
    losses = [
        mean_loss(one, CrossEntropy(), held_out, 32)
        for one in (base, merge(task.model(), found, alpha))
    ]
    print(f"trained {size:,} weights beside {base.flat.size:,} frozen ones")
    print(f"nats on another text: {losses[0]:.3f} before, {losses[1]:.3f} after {steps} steps")
    formula = 2 * (2 - 1) * 4 * (size + 1) // 2  # 2 (p - 1) / p of the weights and the loss
    print(f"bytes a step and rank: {sent / steps:,.0f}, formula {formula:,}")
    # size + 1 is odd: the two halves differ by one number, and so may the ranks.
    assert sent + also == 2 * steps * formula and abs(sent - also) <= 8 * steps
    run.must(losses[1] < losses[0] - 0.5, losses)


def main() -> None:
    parts = {"cnn": run_cnn, "gpt": run_gpt, "distil": run_distil, "lora": run_lora}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=parts)
    parser.add_argument("--trained", help="a safetensors file with the original's parameters")
    parser.add_argument("--tiny", action="store_true", help="a few steps: to see that it works")
    options = parser.parse_args()
    parts[options.part](Run(options.trained, options.tiny))


if __name__ == "__main__":
    main()
