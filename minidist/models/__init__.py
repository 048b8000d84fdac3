"""Models: lists of blocks, so that a pipeline can cut them."""

from minidist.models.cnn import cnn
from minidist.models.gpt import gpt, sample
from minidist.models.mlp import mlp

__all__ = ["cnn", "gpt", "mlp", "sample"]
