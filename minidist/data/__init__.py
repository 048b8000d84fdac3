"""Data that ships with the package, and batches keyed by (seed, step)."""

from minidist.data.batches import Batch, Batches, Dataset
from minidist.data.fashion_mnist import fashion_mnist

__all__ = ["Batch", "Batches", "Dataset", "fashion_mnist"]
