"""Train by any method, on your data, and go on after a crash: the program to copy.

    python lessons/scripts/train.py                                      # the shipped images
    minidist run -n 4 lessons/scripts/train.py -- --method zero/3 --data my.csv --out runs/a
    mpirun -n 4 python lessons/scripts/train.py --data my.npz --out runs/b
    srun -n 16 python lessons/scripts/train.py --data tokens.npy --classes 50257 --out runs/c

With --out it writes checkpoints, metrics.jsonl and, at the end, model.safetensors there. Started
again with the same --out, it goes on from the last good checkpoint, on as many ranks as there are.
Data: .csv, .npz (inputs, targets), .npy (tokens: minidist.data.write_tokens), .txt; or "fashion"
or "shakespeare", which are shipped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from minidist import data, launch, models, optim
from minidist.checkpoint import Checkpoints, export_parameters
from minidist.data import Batches
from minidist.nn import CrossEntropy
from minidist.parallel import METHODS


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--method", default="data_parallel/ring", choices=sorted(METHODS), metavar="NAME")
    add("--ranks", type=int, default=4, help="without a launcher: ranks in this process")
    add("--data", default="fashion", help="a file, or fashion, or shakespeare")
    add("--classes", type=int, default=256, help="of a .npy file of tokens: how many there are")
    add("--length", type=int, default=64, help="of a window of text or tokens")
    add("--width", type=int, default=128, help="of the layers")
    add("--layers", type=int, default=2, help="hidden layers, or blocks of the GPT")
    add("--optimizer", default="AdamW", choices=["SGD", "Adam", "AdamW", "LAMB"])
    add("--lr", type=float, default=1e-3)
    add("--batch", type=int, default=128, help="samples in a global batch")
    add("--steps", type=int, default=240)
    add("--seed", type=int, default=0)
    add("--report", type=int, default=40, help="steps from one line of progress to the next")
    add("--evaluate", type=int, default=120, help="steps from one evaluation to the next")
    add("--save", type=int, default=100, help="steps from one checkpoint to the next")
    add("--keep", type=int, default=2, help="checkpoints to keep")
    add("--out", type=Path, help="folder for checkpoints, metrics and the model")
    return parser.parse_args()


def datasets(options):
    """(training, test)."""
    source, length = options.data, options.length
    if source == "fashion":
        return data.fashion_mnist()
    if source == "shakespeare":
        return data.shakespeare(length)
    kind = Path(source).suffix
    if kind == ".csv":
        return data.csv_file(source)
    if kind == ".npz":
        return data.npz_file(source)
    if kind == ".npy":
        parts = data.split_tokens(data.open_tokens(source))
        return tuple(
            data.token_windows(Path(source).name, p, length, options.classes) for p in parts
        )
    if kind in (".txt", ".gz"):
        return data.text_file(source, length)
    raise ValueError(f"--data {source}: give a .csv, .npz, .npy or .txt file, fashion, shakespeare")


def model_for(dataset, options):
    """A GPT for windows of tokens, else an MLP."""
    if dataset.targets.shape[1:]:
        return models.gpt(
            dataset.classes, options.length, options.width, options.layers, options.width // 32 or 1
        )
    inputs = int(np.prod(dataset.input_shape))
    return models.mlp((inputs, *[options.width] * options.layers, dataset.classes))


class Metrics:
    """metrics.jsonl: a line of JSON for each report; those after the resumed step are dropped."""

    def __init__(self, path: Path | None, start: int) -> None:
        self.path = path
        if path is not None:
            kept = []
            for line in path.read_text().splitlines() if path.exists() else ():
                with suppress(ValueError):  # a kill may have cut off the last line
                    kept += [line] if json.loads(line)["step"] <= start else []
            new = path.with_suffix(".new")
            new.write_text("".join(f"{line}\n" for line in kept))
            new.replace(path)

    def write(self, **values) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")


def main(comm, options):
    training, test = datasets(options)
    batches = Batches(training, options.batch, options.seed)
    optimizer = getattr(optim, options.optimizer)(options.lr)
    model, first = model_for(training, options), comm.rank == 0
    method = METHODS[options.method](model, CrossEntropy(), optimizer, comm, seed=options.seed)

    checkpoints, start = None, 0
    if options.out:  # tried first: a folder that cannot be written ends the job here
        folder = options.out / "checkpoints"
        checkpoints = Checkpoints(folder, method, batches, options.keep, overlapped=True)
        start = checkpoints.resume()
    if first and start:
        again = os.environ.get("MINIDIST_RESTART", "0")
        print(f"going on from step {start} on {comm.size} ranks (restart {again})", flush=True)
    metrics = Metrics(options.out / "metrics.jsonl" if options.out and first else None, start)

    began, so_far = time.perf_counter(), start
    for step in range(start, options.steps):
        loss = method.step(batches[step])  # the global batch: the method takes its own part
        done = step + 1
        if first and (done % options.report == 0 or done == options.steps):
            rate = (done - so_far) * options.batch / (time.perf_counter() - began)
            print(f"step {done:5}  loss {loss:.4f}  {rate:,.0f} samples/s", flush=True)
            metrics.write(step=done, loss=loss, samples_per_second=rate, ranks=comm.size)
        if done % options.evaluate == 0 and done < options.steps:
            loss, accuracy = method.evaluate(test)  # every rank must call it
            if first:
                metrics.write(step=done, test_loss=loss, test_accuracy=accuracy)
        if checkpoints and (done % options.save == 0 or done == options.steps):
            checkpoints.save(done, notes={"arguments": vars(options) | {"out": str(options.out)}})
    if checkpoints:
        checkpoints.wait()
        export_parameters(options.out / "model.safetensors", method)
    loss, accuracy = method.evaluate(test)
    if first:
        metrics.write(step=max(start, options.steps), test_loss=loss, test_accuracy=accuracy)
        print(f"test loss {loss:.4f}, test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    options = arguments()
    launch(partial(main, options=options), ranks=options.ranks)
