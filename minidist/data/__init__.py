"""Datasets of the package, datasets from a user's files, and batches keyed by (seed, step)."""

from minidist.data.augment import Augment
from minidist.data.batches import Batches
from minidist.data.dataset import Batch, Dataset
from minidist.data.fashion_mnist import fashion_mnist
from minidist.data.prefetch import Prefetch
from minidist.data.synthetic import waves
from minidist.data.tables import csv_file, npz_file
from minidist.data.text import (
    Vocabulary,
    characters,
    read_in_pieces,
    shakespeare,
    shakespeare_text,
    text_file,
)
from minidist.data.tokens import open_tokens, split_tokens, token_windows, write_tokens

__all__ = [
    "Augment",
    "Batch",
    "Batches",
    "Dataset",
    "Prefetch",
    "Vocabulary",
    "characters",
    "csv_file",
    "fashion_mnist",
    "npz_file",
    "open_tokens",
    "read_in_pieces",
    "shakespeare",
    "shakespeare_text",
    "split_tokens",
    "text_file",
    "token_windows",
    "waves",
    "write_tokens",
]
