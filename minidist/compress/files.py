"""Save a compressed model as safetensors, and load it again, bit for bit.

    save("small.safetensors", model)
    model = load("small.safetensors", cnn())     # the original model, declared

The file has the model's arrays. Its metadata has the differences to the original: the layers that
were replaced, with their settings, and the numbers of heads. Shapes follow from the arrays.

If it takes fewer bytes, an array with many zeros is stored as one bit for each element, and the
elements that are not zero:

    w = 0.9 0 0 0.4  →  w:mask = 1 0 0 1,  w:values = 0.9 0.4          n / 8 + 4 · nonzero bytes

"Zero" here means that all bits are zero, so -0.0 is kept. safetensors contains no code; layers in
the metadata are looked up in ``LAYERS``, and others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from minidist.compress.aware import Aware
from minidist.compress.grouped import GroupedLinear
from minidist.compress.int8 import Int8Conv2d, Int8Linear
from minidist.compress.lora import LoRA
from minidist.compress.low_rank import factored
from minidist.compress.rebuild import declared, dtype_of, exchange, filled
from minidist.compress.structured import set_heads
from minidist.nn.attention import CausalSelfAttention
from minidist.nn.module import Module

KEY = "minidist.compress"

# How to make a layer again, from the one that it replaced and its settings.
LAYERS: dict[str, Callable[..., Module]] = {
    "Int8Linear": lambda old, **settings: Int8Linear(**settings),
    "Int8Conv2d": lambda old, **settings: Int8Conv2d(**settings),
    "GroupedLinear": lambda old, **settings: GroupedLinear(**settings),
    "Aware": lambda old: Aware(old),
    "Factored": lambda old, rank: factored(old, rank),
    "LoRA": lambda old, **settings: LoRA(old, **settings),
}


class FileError(ValueError):
    """The file was not written by ``save``, is damaged, or belongs to another model."""


def to_bytes(model: Module) -> bytes:
    """The content of the file that ``save`` writes."""
    tensors: dict[str, np.ndarray] = {}
    packed: dict[str, list[int]] = {}
    for name, values in model.state().items():
        mask = values.reshape(-1).view(f"u{values.itemsize}") != 0
        kept = values.reshape(-1)[mask]
        bits = np.packbits(mask)
        if bits.nbytes + kept.nbytes < values.nbytes:
            packed[name] = list(values.shape)
            tensors |= {f"{name}:mask": bits, f"{name}:values": kept}
        else:
            tensors[name] = np.ascontiguousarray(values)
    layers, heads = [], {}
    for path, module in model.named_modules().items():
        if type(module).__name__ in LAYERS:
            layers.append((path, type(module).__name__, module.settings))
        elif isinstance(module, CausalSelfAttention):
            heads[path] = module.heads, module.groups
    what = {
        "layers": layers,
        "heads": heads,
        "packed": packed,
        "dtype": str(dtype_of(model)),
        "frozen": [n for n, p in model.named_parameters().items() if not p.requires_grad],
    }
    return serialize(tensors, {KEY: json.dumps(what)})


def save(path: str | Path, model: Module) -> Path:
    """Write an initialised model's arrays and structure; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_bytes(model))
    return path


def parameters(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a model in a file of ``save``, or in any other safetensors file.

    Raises FileError for a file that cannot be read.
    """
    tensors, metadata = _read(path)
    try:
        return tensors if metadata is None else _unpacked(tensors, json.loads(metadata)["packed"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path} is damaged: {error}") from error


def _read(path: str | Path) -> tuple[dict[str, np.ndarray], str | None]:
    """The arrays of a safetensors file, and the metadata of ``save`` (None if it has none)."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = (file.metadata() or {}).get(KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise FileError(f"{path} is not a whole safetensors file: {error}") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error}") from error


def load(path: str | Path, model: Module) -> Module:
    """The saved model. ``model``: the original model, declared.

    Raises FileError if the file is damaged, was not written by ``save``, or belongs to another
    model.
    """
    tensors, metadata = _read(path)
    if metadata is None:
        raise FileError(f"{path} has no {KEY!r} metadata: minidist.compress.save did not write it")
    try:
        what = json.loads(metadata)
        state = _unpacked(tensors, what["packed"])
        new = declared(model)
        for place, kind, settings in what["layers"]:
            _replace(new, place, kind, settings)
        set_heads(new, {place: tuple(pair) for place, pair in what["heads"].items()})
        new = declared(new, {name: values.shape for name, values in state.items()})
        if what["frozen"]:
            new.freeze(*what["frozen"])
        return filled(new, state, np.dtype(what["dtype"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"{path} does not fit this model: {error}") from error


def _replace(model: Module, place: str, kind: str, settings: dict[str, Any]) -> None:
    if kind not in LAYERS:
        raise ValueError(f"layer {place} is a {kind!r}, which is not one of {', '.join(LAYERS)}")
    found = []

    def change(path: str, layer: Module) -> Module | None:
        if path != place:
            return None
        found.append(path)
        return LAYERS[kind](layer, **settings)

    exchange(model, change)
    if not found:
        raise ValueError(f"the model has no layer {place!r}")


def _unpacked(
    tensors: dict[str, np.ndarray], packed: dict[str, list[int]]
) -> dict[str, np.ndarray]:
    """The arrays, with the zeros that were left out."""
    for name, shape in packed.items():
        bits, kept = tensors.pop(f"{name}:mask"), tensors.pop(f"{name}:values")
        values = np.zeros(int(np.prod(shape)), kept.dtype)
        mask = np.unpackbits(bits, count=values.size).astype(bool)
        if mask.sum() != kept.size:
            raise ValueError(f"{name} has {kept.size} values for {mask.sum()} places")
        values[mask] = kept
        tensors[name] = values.reshape(shape)
    return tensors
