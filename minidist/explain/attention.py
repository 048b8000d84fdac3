"""Attention maps: the positions that each position reads from, in every layer and head of a GPT.

    P = softmax(Q Kᵀ / √d),  row i: the weights of the values at positions j ≤ i in position i

These weights are computed anyway, so they are easy to look at. But they show what a layer *reads*,
not what matters for the output: values may be small, later layers may ignore them, and a position
already contains a mix of others. *Rollout* takes this mixing into account. It assumes that in each
layer half of a position is kept (the residual connection) and half is the mean over the heads; then
it multiplies the matrices of the layers:

    A_l = ½ I + ½ mean over heads of P_l          R = A_L ... A_2 A_1

Row i of R is the share of each input position in position i at the end; it ignores the values and
the other layers. Abnar, Zuidema, "Quantifying attention flow in transformers", ACL 2020 (arXiv
2005.00928), section 3. Attention weights often do not explain an output: Jain, Wallace, "Attention
is not explanation", arXiv 1902.10186.
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
from minidist.ops.blockwise_attention import attention_forward


def attention_maps(model: Sequential, tokens: Any) -> list[np.ndarray]:
    """P of each layer, from the first on: (batch, heads, length, length); rows sum to 1.

    ``tokens``: the model's input, (batch, length). Raises ValueError for a model without attention
    layers.
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
    """P from concatenated queries, keys and values (b, l, features): (b, heads, l, l)."""
    batch, length, _ = qkv.shape
    groups, xp = layer.groups, qkv.xp
    parts = qkv.reshape(batch, length, layer.heads + 2 * groups, -1).transpose(0, 2, 1, 3)
    q, k, _ = ops.split(parts, (layer.heads, groups, groups), axis=1)  # (b, h, l, d)
    if layer.rotary_base is not None:
        q, k = ops.rotary(q, layer.rotary_base), ops.rotary(k, layer.rotary_base)
    one = xp.empty((batch, groups, length, length), q.dtype)
    one[...] = xp.eye(length, dtype=q.dtype)
    weights = xp.empty((batch, layer.heads, length, length), q.dtype)
    attention_forward(q.data, k.data, one, weights, causal=True)  # with V = I, O = P V is P
    return weights


def attention_rollout(maps: Sequence[np.ndarray]) -> np.ndarray:
    """R from the result of ``attention_maps``: (batch, length, length); rows sum to 1."""
    if not maps:
        raise ValueError("attention rollout: no maps: pass attention_maps(model, tokens)")
    length = maps[0].shape[-1]
    found = np.eye(length)
    for weights in maps:
        mixing = 0.5 * np.eye(length) + 0.5 * weights.mean(axis=1)  # (b, l, l)
        found = mixing @ found  # (b, l, l) @ (b, l, l)
    return found
