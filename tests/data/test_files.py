"""Data from the user's own files: IDX, text, and token files larger than memory."""

import gzip
import struct

import numpy as np
import pytest

from minidist.data import (
    Batches,
    Vocabulary,
    characters,
    fashion_mnist,
    open_tokens,
    read_in_pieces,
    shakespeare,
    split_tokens,
    text_file,
    token_windows,
    write_tokens,
)
from minidist.data.idx import read_idx
from minidist.nn import CrossEntropy


def idx(array):
    codes = {"uint8": 8, "int32": 0x0C, "float32": 0x0D}
    head = bytes([0, 0, codes[array.dtype.name], array.ndim])
    lengths = struct.pack(f">{array.ndim}I", *array.shape)
    return head + lengths + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_read_idx(tmp_path, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "small.gz").write_bytes(gzip.compress(idx(array)))
    for name in ("plain", "small.gz"):
        got = read_idx(tmp_path / name)
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_damaged_idx_files_are_named(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\x89PNG....")
    with pytest.raises(ValueError, match="not an IDX file: it begins with 89 50 4e 47"):
        read_idx(path)
    path.write_bytes(idx(np.zeros((2, 3), np.uint8))[:-1])
    with pytest.raises(ValueError, match=r"shape \(2, 3\) has 18 bytes, not 17"):
        read_idx(path)


def write_fashion_mnist(folder, images, labels):
    for part, ending in (("train", ""), ("t10k", ".gz")):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            raw = idx(array)
            path = folder / f"{part}-{name}-ubyte{ending}"
            path.write_bytes(gzip.compress(raw) if ending else raw)


def test_fashion_mnist_from_a_folder(tmp_path):
    shipped, _ = fashion_mnist()
    write_fashion_mnist(tmp_path, shipped.inputs[:50], shipped.targets[:50].astype(np.uint8))
    for part in fashion_mnist(tmp_path):
        batch, expected = part.batch(np.arange(50)), shipped.batch(np.arange(50))
        np.testing.assert_array_equal(batch.inputs, expected.inputs)
        np.testing.assert_array_equal(batch.targets, expected.targets)


def test_fashion_mnist_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        fashion_mnist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither train-images-idx3-ubyte nor .*\.gz"):
        fashion_mnist(tmp_path)
    write_fashion_mnist(tmp_path, np.zeros((3, 8, 8), np.uint8), np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="is this Fashion-MNIST"):
        fashion_mnist(tmp_path)


def test_vocabulary_goes_there_and_back():
    vocabulary = Vocabulary("to be, or not\nto be — ça ira 🎭")
    text = "rot 🎭— ça\nno"
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode("").size == 0
    with pytest.raises(ValueError, match="does not have 'xz'"):
        vocabulary.encode("zoxo")


@pytest.mark.parametrize("stride", [None, 1, 3])
def test_windows_predict_the_next_token(stride):
    tokens = np.arange(100, 123)
    data = token_windows("row", tokens, 5, 200, stride)
    step = stride or 5
    assert len(data) == (23 - 1 - 5) // step + 1
    batch = data.batch(np.arange(len(data)))
    np.testing.assert_array_equal(batch.inputs[:, 0], 100 + step * np.arange(len(data)))
    np.testing.assert_array_equal(batch.targets, batch.inputs + 1)
    assert batch.targets.max() <= 122
    assert batch.inputs.dtype == np.int64
    assert (
        batch.shard(0, 2).count(CrossEntropy()) == batch.inputs.size
    )  # targets are counted, not windows


def test_the_last_window_uses_the_last_token():
    assert len(token_windows("row", np.arange(11), 5, 11)) == 2
    assert len(token_windows("row", np.arange(10), 5, 11)) == 1
    with pytest.raises(
        ValueError, match="5 tokens are too few for a window of 5 tokens and the one after"
    ):
        token_windows("row", np.arange(5), 5, 11)
    with pytest.raises(IndexError, match="from 0 to 1"):
        token_windows("row", np.arange(11), 5, 11).inputs[[2]]


def test_shakespeare():
    train, held_out = shakespeare(64)
    assert train.classes == 63
    assert len(train) * 64 > 9 * len(held_out) * 64 * 0.99
    batch = Batches(train, 4)[0]
    assert batch.inputs.shape == batch.targets.shape == (4, 64)
    first = train.decode(train.inputs[np.array([0])][0])
    print(first)
    assert first.startswith("BERNARDO:\nWho's there?")
    np.testing.assert_array_equal(train.encode(first), train.inputs[np.array([0])][0])


def test_any_text_file(tmp_path):
    (tmp_path / "a.txt").write_text("ab" * 50)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"ab" * 50))
    for name in ("a.txt", "a.txt.gz"):
        train, held_out = text_file(tmp_path / name, 5, held_out=0.2)
        assert train.decode(train.inputs[np.array([1])][0]) == "babab"
        assert len(held_out) == 3
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        text_file(tmp_path / "b.txt", 5)
    with pytest.raises(FileNotFoundError, match="no text file"):
        text_file(tmp_path / "c.txt", 5)
    with pytest.raises(ValueError, match="too few for a window of 50"):
        characters("a short text", 50)


@pytest.mark.parametrize(("classes", "size"), [(2, 1), (256, 1), (257, 2), (70_000, 4)])
def test_token_files(tmp_path, classes, size):
    path = tmp_path / "tokens.npy"
    pieces = [np.arange(n) % classes for n in (1000, 0, 7)]
    assert write_tokens(path, iter(pieces), classes) == 1007
    tokens = open_tokens(path)
    assert isinstance(tokens, np.memmap) and tokens.itemsize == size
    np.testing.assert_array_equal(tokens, np.concatenate(pieces))
    np.testing.assert_array_equal(np.load(path), np.concatenate(pieces))  # an ordinary .npy
    train, held_out = split_tokens(tokens, 0.1)
    assert (len(train), len(held_out)) == (906, 101)
    batch = token_windows("file", train, 10, classes).batch(np.array([3]))
    np.testing.assert_array_equal(batch.targets[0], np.arange(31, 41) % classes)


def test_a_text_goes_to_a_token_file_in_pieces(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be" * 10)
    vocabulary = Vocabulary("".join(set().union(*read_in_pieces(tmp_path / "a.txt", 7))))
    pieces = map(vocabulary.encode, read_in_pieces(tmp_path / "a.txt", 7))
    assert write_tokens(tmp_path / "a.npy", pieces, len(vocabulary)) == 180
    assert vocabulary.decode(open_tokens(tmp_path / "a.npy")[:5]) == "to be"


def test_token_file_errors(tmp_path):
    path = tmp_path / "tokens.npy"
    with pytest.raises(ValueError, match=r"must lie in \[0, 4\), found 1 to 9"):
        write_tokens(path, [np.array([1, 9])], 4)
    with pytest.raises(ValueError, match="not finished"):
        open_tokens(path)
    for content in (b"something else", b""):  # empty: another rank begins to write it
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole token file"):
            open_tokens(path)
