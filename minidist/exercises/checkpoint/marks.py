"""A checkpoint that survives a kill: marks."""

from __future__ import annotations

import os
import pickle
import pickletools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from minidist.exercises.checkpoint.dying import dying_at
from minidist.exercises.exercise import Case, Verdict
from minidist.exercises.watch import ACTIVE

TITLE = "A checkpoint that survives a kill"
MINUTES = 75
FUNCTIONS = ("save", "load")
MARKS = {
    "round trip": 3,
    "killed": 4,
    "on the disk": 1,
    "damage": 3,
    "no pickle": 1,
    "no litter": 1,
}
FORBIDDEN = ("minidist", "safetensors", "shelve", "dill", "cloudpickle", "joblib")
KINDS = ("round trip", "killed", "damage", "pickle")


def cases(seed: int) -> Iterator[Case]:
    for kind in KINDS:
        yield Case(seed=seed, settings={"kind": kind})


def prepare(rank: int, case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    draw = np.random.default_rng(case.seed)

    def some() -> dict[str, np.ndarray]:
        return {
            "0.weight": draw.standard_normal((4, 3)),
            "0.bias": draw.standard_normal(3),
            "transposed": draw.standard_normal((2, 5)).T,
            "count": np.array(7),
            "empty": np.zeros((0, 2)),
            "numbers": draw.integers(0, 99, 4),
        }

    return some(), some()


def run(comm: Any, answer: Any, case: Case, given: Any) -> dict[str, Any]:
    old, new = given
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        return {
            "round trip": round_trip, "killed": killed, "damage": damage, "pickle": no_pickle,
        }[case["kind"]](answer, path, old, new)  # fmt: skip


def same(found: Any, step: int, arrays: dict[str, np.ndarray]) -> str | None:
    got_step, got = found
    if int(got_step) != step:
        return f"step {got_step}, and {step} was saved"
    if set(got) != set(arrays):
        return f"arrays {sorted(got)}, and {sorted(arrays)} were saved"
    for name, array in arrays.items():
        one = np.asarray(got[name])
        if one.shape != array.shape or one.dtype != array.dtype:
            return f"{name} is {one.dtype}{one.shape}, and {array.dtype}{array.shape} was saved"
        if not np.array_equal(one, array):
            return f"{name} has other values than were saved"
    return None


def round_trip(answer: Any, path: Path, old: Any, new: Any) -> dict[str, Any]:
    names = [name for name in ("fsync", "fdatasync") if hasattr(os, name)]
    true = {name: getattr(os, name) for name in names}
    synced: list[tuple[int, int, bool]] = []  # the file, its length, has it the right name yet

    def watch(call: Callable[[Any], None]) -> Callable[[Any], None]:
        def watched(fd: Any) -> None:
            file = os.stat(fd if isinstance(fd, int) else fd.fileno())
            named = path.exists() and path.stat().st_ino == file.st_ino
            synced.append((file.st_ino, file.st_size, named))
            call(fd)

        return watched

    for name in names:
        setattr(os, name, watch(true[name]))
    try:
        answer.save(path, 3, old)
        unsafe = not_on_disk(path, synced)
        wrong = same(answer.load(path), 3, old)
        synced.clear()
        answer.save(path, 4, new)
        unsafe = unsafe or not_on_disk(path, synced)
        wrong = wrong or same(answer.load(path), 4, new)
    finally:
        for name in names:
            setattr(os, name, true[name])
    litter = sorted(one.name for one in path.parent.iterdir() if one != path)
    try:
        answer.load(path.with_name("nothing"))
        missing: str | None = "load of a file that is not there raises nothing"
    except FileNotFoundError:
        missing = None
    except Exception as error:
        missing = f"load of a file that is not there raises {type(error).__name__}"
    return {"wrong": wrong or missing, "unsafe": unsafe, "litter": litter}


def not_on_disk(path: Path, synced: list[tuple[int, int, bool]]) -> str | None:
    """What a power cut could take, from the syncs (file, its length, had it the right name)."""
    if not synced:
        return "nothing calls os.fsync: after a power cut the file may be there and empty"
    file = path.stat()
    own = [(length, named) for number, length, named in synced if number == file.st_ino]
    if not own:
        return "os.fsync is called for another file than the one that is left in the end"
    if not any(length == file.st_size for length, _ in own):
        return (
            f"os.fsync is called when {max(own)[0]} of {file.st_size} bytes have been written: "
            "first write everything and call file.flush(), since Python keeps the last bytes in a "
            "buffer"
        )
    if not any(length == file.st_size and not named for length, named in own):
        return (
            "os.fsync comes after the file has got its name: after a power cut between the two the "
            "name may stand for an empty file"
        )
    return None


def killed(answer: Any, path: Path, old: Any, new: Any) -> dict[str, Any]:
    """End ``save`` at its first call of the system, at its second, and so on."""
    moment, wrong, kept = 0, None, 0
    while moment < 60:
        for one in path.parent.iterdir():
            one.unlink()
        answer.save(path, 3, old)
        ended = dying_at(moment, lambda: answer.save(path, 4, new))
        try:
            step, _ = found = answer.load(path)
            wrong = wrong or same(found, int(step), old if int(step) == 3 else new)
        except Exception as error:
            wrong = wrong or (
                f"killed in the middle of save, at its call number {moment + 1}, and nothing can "
                f"be loaded any more ({type(error).__name__}: {error})"
            )
        kept += 1
        if not ended:
            return {"wrong": wrong, "moments": kept}
        moment += 1
    return {"wrong": wrong, "moments": kept}


def damage(answer: Any, path: Path, old: Any, new: Any) -> dict[str, Any]:
    answer.save(path, 3, old)
    good = path.read_bytes()
    draw = np.random.default_rng(0)
    damaged = [good[:n] for n in (0, 1, len(good) // 2, len(good) - 1)] + [
        good + b"x",
        b"\x80" * 90,
    ]
    for place in draw.integers(0, len(good), 40):
        copy = bytearray(good)
        copy[place] ^= 1 << int(draw.integers(8))
        damaged.append(bytes(copy))
    bits = len(damaged)
    for place in np.flatnonzero(np.diff(np.frombuffer(good, np.uint8)))[:: max(1, len(good) // 40)]:
        damaged.append(good[:place] + good[place + 1 : place - 1 : -1] + good[place + 2 :]
                       if place else good[1::-1] + good[2:])  # fmt: skip
    for number, content in enumerate(damaged):
        path.write_bytes(content)
        try:
            answer.load(path)
        except ValueError:
            continue
        except Exception as error:
            what = "cut off" if number < 4 else "damaged"
            return {"wrong": f"a file that was {what} raises {type(error).__name__}: {error}"}
        what = "was cut off or made longer" if number < 5 else "has a flipped bit"
        if number >= bits:
            what = "has two bytes exchanged, which no plain sum of bytes shows,"
        return {"wrong": f"a file that {what} is loaded as if nothing had happened"}
    return {"wrong": None}


class Bomb:
    """A pickle of this creates a file where it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def holds_pickle(content: bytes) -> bool:
    """Whether a pickle begins anywhere, such as behind a checksum."""
    for protocol in (2, 3, 4, 5):
        start = -1
        while (start := content.find(bytes([0x80, protocol]), start + 1)) >= 0:
            try:
                if sum(1 for _ in pickletools.genops(content[start:])) >= 10:
                    return True  # it ends, too: else genops raises an error
            except Exception:  # these bytes are something else
                continue
    return False


def no_pickle(answer: Any, path: Path, old: Any, new: Any) -> dict[str, Any]:
    trap = path.with_name("trap")
    ran: set[str] = ACTIVE[-1].ran if ACTIVE else set()
    answer.save(path, 3, old)
    pickled = holds_pickle(path.read_bytes())
    ran.clear()
    with suppress(Exception):  # it has marks of its own
        answer.load(path)
    evaluated, pickled = "eval" in ran, pickled or "pickle" in ran
    path.write_bytes(pickle.dumps(Bomb(str(trap))))
    try:
        answer.load(path)
        wrong: str | None = "a pickle is loaded as if it were a checkpoint"
    except ValueError:
        wrong = None
    except Exception as error:
        wrong = f"a pickle raises {type(error).__name__}, and ValueError is wanted"
    if trap.exists():
        wrong = "load has run the code in a pickle: use a format that holds data alone"
    elif pickled:
        wrong = "save writes a pickle: use a format that holds data alone"
    elif evaluated:
        wrong = "load runs what is in the file by eval or exec, and it could be any code, as in a "
        wrong += "pickle: use a format that holds data alone"
    return {"wrong": wrong}


def judge(case: Case, ranks: list[dict[str, Any]]) -> Iterator[Verdict]:
    (got,), kind = ranks, case["kind"]
    if kind == "round trip":
        yield "round trip", got["wrong"]
        yield "on the disk", got["unsafe"]
        yield (
            "no litter",
            (
                f"{', '.join(got['litter'])} is left beside the checkpoint"
                if got["litter"]
                else None
            ),
        )
    elif kind == "killed":
        yield (
            "killed",
            got["wrong"]
            or (
                None
                if got["moments"] > 3
                else "save writes nothing through open: it cannot be tried"
            ),
        )
    elif kind == "damage":
        yield "damage", got["wrong"]
    else:
        yield "no pickle", got["wrong"]
