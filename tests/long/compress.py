"""What compression must show, on models that have been trained for real: see JOBS in run.py.

    python -m tests.long.compress cnn        # half the channels, a tenth of the weights, int8
    python -m tests.long.compress gpt        # int8 and int4 on a language model
    python -m tests.long.compress distil     # a small model with and without a teacher, 5 seeds
    python -m tests.long.compress lora       # the language model learns another text, on two ranks

Each prints its figures and fails if one is worse than it must be. ``--trained FILE`` takes the
parameters of a trained original from a safetensors file, and so saves most of the time.
"""

from __future__ import annotations

import argparse
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


def said(name: str, done: int, steps: int, loss: float) -> None:
    if done % 200 == 0 or done == steps:
        print(f"{name}: {done} of {steps} steps, loss {loss:.4f}", flush=True)


def compared(task: str, trained: str | None, train_steps: int, steps: int) -> dict[str, Any]:
    """Run all recipes, show and save the result; returns the rows by name."""
    given = None if trained is None else files.parameters(trained)
    result, models = compress(task, "all", train_steps, steps, given, said=said)
    Console(width=170).print(report.table(result))
    print(*report.advice(result), sep="\n")
    report.save(result, models, f"{OUT}/{task}")
    return {row["name"]: row for row in result["rows"]}


def run_cnn(trained: str | None) -> None:
    rows = compared("cnn", trained, train_steps=3000, steps=1500)
    original, half = rows["the original"], rows["half of channels, units, heads"]
    assert original["after"] >= 90, original
    assert half["lost"] <= 1 and half["seconds"] * 2 <= original["seconds"], half
    tenth = rows["nine tenths zero, gradually"]
    assert tenth["lost"] <= 3 and tenth["parameters"] <= 0.105 * original["parameters"], tenth
    int8 = rows["int8 per channel"]
    assert int8["lost"] <= 0.3 and int8["disk"] <= 0.26 * original["disk"], int8


def run_gpt(trained: str | None) -> None:
    rows = compared("gpt", trained, train_steps=3000, steps=400)
    original = rows["the original"]
    assert original["parameters"] <= 1e6 and original["after"] <= 1.75, original
    assert rows["int8 weights in groups"]["lost"] <= 0.01
    assert rows["int4 weights in groups"]["lost"] <= 0.1


def run_distil(trained: str | None, steps: int = 5000, seeds: int = 5) -> None:
    """The same small MLP, the same data in the same order, with and without a teacher.

    Without augmentation: 10,000 images are few for so many steps, and the MLP alone learns them by
    heart. As the images never change, the teacher's logits are computed once.
    """
    task = COMPRESS_TASKS["cnn"]
    teacher, training = cnn().init(0), task.data()[0]
    if trained is None:
        fit(teacher, task.batches(0), 3000, task.lr)
    else:
        teacher.load(files.parameters(trained))
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
    assert mean(gains) > 2 * stdev(gains) / seeds**0.5, gains


def run_lora(trained: str | None, steps: int = 150, rank: int = 4) -> None:
    """The GPT learns another text, in capitals, on two ranks; the bytes are those of a formula."""
    task, alpha = COMPRESS_TASKS["gpt"], 8.0
    training = task.data()[0]
    base = task.model().init(0)
    if trained is None:
        fit(base, task.batches(0), 3000, task.lr)
    else:
        base.load(files.parameters(trained))
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
    assert losses[1] < losses[0] - 0.5, losses


def main() -> None:
    parts = {"cnn": run_cnn, "gpt": run_gpt, "distil": run_distil, "lora": run_lora}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=parts)
    parser.add_argument("--trained", help="a safetensors file with the original's parameters")
    options = parser.parse_args()
    parts[options.part](options.trained)


if __name__ == "__main__":
    main()
