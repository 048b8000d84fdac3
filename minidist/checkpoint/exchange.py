"""Exchange a model with other programs: one safetensors file with serial names.

    export_parameters("model.safetensors", method)       every rank calls it, rank 0 writes
    safetensors.numpy.load_file("model.safetensors")     {"0.weight": ..., "0.bias": ...}
    import_parameters("model.safetensors", method)       start with these parameters

The names are those of ``model.named_parameters()`` and ``named_buffers()``. A ``Linear``'s weight
is (inputs, outputs), the transpose of PyTorch's. Unlike a checkpoint, the file has only the model:
no optimizer state and no number of steps.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from minidist.checkpoint import files
from minidist.checkpoint.agree import on_all_ranks
from minidist.checkpoint.manifest import CheckpointError, Damaged, Mismatch
from minidist.nn.module import Module
from minidist.parallel.method import Method


def export_parameters(path: str | Path, source: Method | Module) -> None:
    """Write all parameters and buffers to one file. For a method, every rank must call it.

    The file gets its name when it is complete. Raises CheckpointError if it cannot be written.
    """
    path = Path(path)
    if isinstance(source, Module):
        _write(path, source.state())
        return
    whole = source.parameters() | source.buffers()
    on_all_ranks(source.comm, lambda: _write(path, whole) if source.comm.rank == 0 else None)


def import_parameters(path: str | Path, target: Method | Module) -> None:
    """Read all parameters and buffers from a file. For a method, every rank must call it.

    The method's optimizer state is reset. The file must have exactly the model's names and shapes;
    any floating dtype is converted. Raises Damaged if it is not a safetensors file, Mismatch if it
    is of another model; then nothing has changed.
    """
    path = Path(path)
    if isinstance(target, Module):
        target.load(_read(path, target))
        return
    found = on_all_ranks(target.comm, lambda: _read(path, target.whole))
    state = {f"parameters/{name}": values for name, values in found.items()}
    target.load(state | {"steps": np.array(0), "method/steps": np.array(0)})


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    data = to_bytes({name: np.ascontiguousarray(values) for name, values in arrays.items()})
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        files.write_file(temporary, data)
        os.replace(temporary, path)
        files.sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written: {error}") from error


def _read(path: Path, model: Module) -> dict[str, np.ndarray]:
    try:
        found = from_bytes(path.read_bytes())
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path} cannot be read as safetensors: {error}") from error
    named = model.named_parameters() | model.named_buffers()
    if different := sorted(named.keys() ^ found.keys()):
        raise Mismatch(f"{path} and the model differ in {different[:8]}")
    for name in named:
        values = found[name]
        if values.shape != tuple(named[name].declared) or values.dtype.kind != "f":
            raise Mismatch(
                f"{path}: {name} is {values.dtype} of shape {values.shape}, and the model's is of "
                f"shape {tuple(named[name].declared)}"
            )
    return found
