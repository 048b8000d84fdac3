"""A checkpoint that survives a kill: one right answer."""

import hashlib
import json
import os

import numpy as np


def save(path, step, arrays):
    listed = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    content = json.dumps({"step": step, "arrays": listed}).encode() + b"\n"
    content += b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    with open(str(path) + ".new", "wb") as file:
        file.write(hashlib.sha256(content).digest())
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(str(path) + ".new", path)


def load(path):
    with open(path, "rb") as file:
        digest, content = file.read(32), file.read()
    if hashlib.sha256(content).digest() != digest:
        raise ValueError(f"{path} is damaged: its checksum does not match")
    header, _, data = content.partition(b"\n")
    found = json.loads(header)
    arrays, start = {}, 0
    for name, dtype, shape in found["arrays"]:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, dtype, count, start).reshape(shape).copy()
        start += arrays[name].nbytes
    return found["step"], arrays
