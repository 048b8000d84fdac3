"""Models: lists of blocks, so that a pipeline can cut them."""

from minidist.models.mlp import mlp

__all__ = ["mlp"]
