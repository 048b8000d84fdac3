"""Load a GPT for inference from a file that ``minidist.compress.save`` has written.

The shapes of the arrays give the model's arguments: ``embedding.weight`` is (vocabulary, width),
``0.position`` is (context, width), and the last block is the head. The file also records replaced
(such as quantized) layers, and the numbers of heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minidist.compress import files
from minidist.models import gpt


def load_gpt(path: str | Path) -> Any:
    """The GPT in a file, initialised. Raises ``compress.FileError`` if it has none."""
    arrays = files.parameters(path)
    try:
        vocabulary, width = arrays["embedding.weight"].shape
        context = len(arrays["0.position"])
        last = max(int(name.split(".")[0]) for name in arrays if name[:1].isdigit())
    except KeyError as error:
        raise files.FileError(f"{path} has no GPT: {error} is missing among its arrays") from error
    except (ValueError, TypeError) as error:
        raise files.FileError(
            f"{path} has no GPT: its arrays have other names or shapes: {error}"
        ) from error
    return files.load(path, gpt(vocabulary, context, width, last - 1, heads=1))
