"""Layers and losses; parameters are declared first, and then initialised in one flat array."""

from minidist.nn.activations import GELU, Dropout, ReLU, Sigmoid, SiLU, Tanh
from minidist.nn.attention import CausalSelfAttention, KeyValueCache
from minidist.nn.convolution import AddChannel, AvgPool2d, Conv1d, Conv2d, MaxPool2d
from minidist.nn.cross_entropy import CrossEntropy
from minidist.nn.layers import Embedding, Flatten, Linear, Residual, Sequential
from minidist.nn.losses import (
    BinaryCrossEntropy,
    Huber,
    KLDivergence,
    Loss,
    MeanSquaredError,
)
from minidist.nn.module import Buffer, Flat, LayerCost, Module, Parameter, UninitialisedError
from minidist.nn.normalization import BatchNorm, LayerNorm, RMSNorm, SyncBatchNorm

__all__ = [
    "GELU",
    "AddChannel",
    "AvgPool2d",
    "BatchNorm",
    "BinaryCrossEntropy",
    "Buffer",
    "CausalSelfAttention",
    "Conv1d",
    "Conv2d",
    "CrossEntropy",
    "Dropout",
    "Embedding",
    "Flat",
    "Flatten",
    "Huber",
    "KLDivergence",
    "KeyValueCache",
    "LayerCost",
    "LayerNorm",
    "Linear",
    "Loss",
    "MaxPool2d",
    "MeanSquaredError",
    "Module",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SyncBatchNorm",
    "Tanh",
    "UninitialisedError",
]
