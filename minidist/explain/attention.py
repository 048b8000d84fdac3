"""Attention maps: from where each position reads, in every layer and head of a GPT.

    P = softmax(Q Kᵀ / √d),  row i: how much position i takes of the values at positions j ≤ i

They are there anyway, so they are the first thing to look at. But they say from where a layer
*reads*, not what counts for the output: values may be small, later layers may ignore them, and a
position may have been mixed from others already. *Rollout* follows the mixing: in each layer half
of a position stays (the residual connection), half is the mean over the heads, and the layers'
matrices are multiplied:

    A_l = ½ I + ½ mean over heads of P_l          R = A_L ... A_2 A_1

Row i of R says how much of each input position is in position i at the end, if values and the
layers between did not matter. Abnar, Zuidema, "Quantifying attention flow in transformers", ACL
2020 (arXiv 2005.00928), section 3. That attention need not be explanation: Jain, Wallace, arXiv
1902.10186.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minidist import ops
from minidist.engine.array import to_host
from minidist.engine.tensor import Tensor, no_grad
from minidist.explain.score import frozen
from minidist.nn import CausalSelfAttention, Module, Sequential
from minidist.ops.attention import attention_forward


def attention_maps(model: Sequential, tokens: Any) -> list[np.ndarray]:
    """P of each layer, from the first on: (batch, heads, length, length); rows sum to 1.

    ``tokens``: what the model takes, (batch, length). Raises ValueError for a model in which no
    layer attends.
    """
    copy = frozen(model)
    found: list[np.ndarray] = []
    layers = [one for one in copy.named_modules().values() if isinstance(one, CausalSelfAttention)]
    if not layers:
        kinds = ", ".join(sorted({type(block).__name__ for block in children(copy)}))
        raise ValueError(
            f"attention maps: no layer of the model attends (it has {kinds}): only models with "
            "CausalSelfAttention have such maps; gradients and occlusion explain any model"
        )
    for layer in layers:
        vars(layer)["core"] = recording(layer, found)
    with no_grad():
        copy(tokens)
    return found


def children(model: Sequential) -> list[Module]:
    return list(model.blocks.values())


def recording(layer: CausalSelfAttention, found: list[np.ndarray]) -> Any:
    """``layer.core``, which also appends its weights to ``found``."""
    core = layer.core

    def recorded(qkv: Tensor, mask: Any = None) -> Tensor:
        found.append(to_host(weights_of(layer, qkv)))
        return core(qkv, mask)

    return recorded


def weights_of(layer: CausalSelfAttention, qkv: Tensor) -> Any:
    """P, of queries, keys and values side by side: (b, heads, l, l)."""
    batch, length, _ = qkv.shape
    groups, xp = layer.groups, qkv.xp
    parts = qkv.reshape(batch, length, layer.heads + 2 * groups, -1).transpose(0, 2, 1, 3)
    q, k, _ = ops.split(parts, (layer.heads, groups, groups), axis=1)  # (b, h, l, d)
    if layer.rotary_base is not None:
        q, k = ops.rotary(q, layer.rotary_base), ops.rotary(k, layer.rotary_base)
    one = xp.empty((batch, groups, length, length), q.dtype)
    one[...] = xp.eye(length, dtype=q.dtype)
    weights = xp.empty((batch, layer.heads, length, length), q.dtype)
    attention_forward(q.data, k.data, one, weights, causal=True)  # O = P V, and V is I here
    return weights


def attention_rollout(maps: Sequence[np.ndarray]) -> np.ndarray:
    """R of what ``attention_maps`` gave: (batch, length, length); rows sum to 1."""
    if not maps:
        raise ValueError("attention rollout: no maps: pass what attention_maps(model, tokens) gave")
    length = maps[0].shape[-1]
    found = np.eye(length)
    for weights in maps:
        mixing = 0.5 * np.eye(length) + 0.5 * weights.mean(axis=1)  # (b, l, l)
        found = mixing @ found  # (b, l, l) @ (b, l, l)
    return found
