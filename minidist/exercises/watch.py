"""What an answer may not do, and how it is noticed: a process that runs an answer is watched.

An exercise is about writing something that minidist, or a library, has already. So the modules that
contain it cannot be imported here, whatever name they are given and whenever it is tried; and their
files cannot be read. What is tried is written down and shown with the marks.

Python cannot hide a process from the code that runs in it. Whoever is determined to cheat will find
a way that is not on this list; a person should look at the answers that matter.
"""

from __future__ import annotations

import importlib.abc
import linecache
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from minidist import lazy

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
OWN = tuple(  # folders of the marker and of what it runs answers with, as modules name their files
    os.path.join(root, package, "")
    for root in {ROOT, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
    for package in ("exercises", "comm")
)
LIBRARIES = ("mpi4py", "torch", "jax", "tensorflow")  # each has what the exercises are about
MEASURES = ("tracemalloc", "_tracemalloc")  # what is measured with; others may import them
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
STARTS = "_posixsubprocess"  # of which multiprocessing makes processes, without an audit event
SIGNALS = ("os.kill", "os.killpg", "signal.pthread_kill")
SEARCHES = ("gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._current_frames")
FRAMES = ("sys._getframe", "sys.settrace", "sys.setprofile")  # libraries may use these


class Watch(importlib.abc.MetaPathFinder):
    """Refuses the forbidden modules while an answer runs, and remembers what was tried.

    ``forbidden`` are names of modules; what lies inside of them is forbidden too. ``file`` is the
    answer: some things are forbidden to it alone, and not to the libraries that it calls.
    """

    def __init__(self, forbidden: Sequence[str], file: str | os.PathLike[str] = "") -> None:
        self.forbidden = (*forbidden, *LIBRARIES, "minidist.exercises")
        self._inside = tuple(f"{name}." for name in self.forbidden)
        self.file = os.fspath(file)
        self.tricks: list[str] = []
        self.ran: set[str] = set()  # code that came from data: through "pickle", "eval"

    def forbids(self, module: str) -> bool:
        return f"{module}.".startswith(self._inside)

    def tried(self, what: str) -> None:
        if what not in self.tricks:
            self.tricks.append(what)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if self.forbids(name):
            within = next(_modules(os.path.realpath(self.asker())), "")
            if within:  # a module that may be imported needs one that may not
                raise ImportError(
                    f"{within.removesuffix('.__init__')} is not available in this exercise: it "
                    f"imports {name}"
                )
            self.tried(f"it imports {name}")
            raise ImportError(f"{name} is not available in this exercise: write it yourself")
        if name == STARTS:
            self.tried("it starts another program")
            raise ImportError("an answer may not start another program")
        if name in MEASURES and self.asked():
            self.tried(f"it imports {name}, with which its memory is measured")
            raise ImportError(f"{name} is not available in this exercise")

    def asked(self) -> bool:
        """Whether the answer itself does what is going on, and not a library that it calls."""
        return self.asker() == self.file

    def asker(self) -> str:
        """The file whose code does what is going on, besides Python's own means to import."""
        before, LOOKING.now = getattr(LOOKING, "now", False), True
        frame: FrameType | None = sys._getframe(1)
        LOOKING.now = before
        while frame and (
            frame.f_code.co_filename in (__file__, importlib.abc.__file__, lazy.__file__)
            or "importlib" in frame.f_code.co_filename
            or os.path.basename(frame.f_code.co_filename) == "inspect.py"
        ):
            frame = frame.f_back
        return frame.f_code.co_filename if frame else ""

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's audit events: a file that is opened, a program that is started, and so on."""
        if event in ("open", "os.link", "os.symlink", "os.rename"):
            if isinstance(arguments[0], (str, bytes, os.PathLike)):
                self.reads(os.path.realpath(os.fsdecode(arguments[0])))
        elif event == "pickle.find_class":
            self.ran.add("pickle")
        elif event == "exec" and not os.path.exists(arguments[0].co_filename) and self.asked():
            self.ran.add("eval")
        elif event in PROGRAMS:
            self.tried("it starts another program")
            raise PermissionError("an answer may not start another program")
        elif event in SIGNALS:
            self.tried("it sends a signal to a process")
            raise PermissionError("an answer may not send signals")
        elif event in ("ctypes.dlopen", "ctypes.dlsym", "ctypes.dlsym/handle"):
            self.tried("it calls C code by ctypes")
            raise PermissionError("an answer may not call C code by ctypes")
        elif event in SEARCHES or (event in FRAMES and self.asked()):
            self.tried(f"it searches the process by {event}")
            raise PermissionError(f"{event} is not available in this exercise")

    def reads(self, path: str) -> None:
        """Refuse the files of forbidden modules, and the folders through which they are opened."""
        within = any(self.forbids(name) for name in _modules(path))
        if within or (ROOT + os.sep).startswith(path.rstrip(os.sep) + os.sep):
            self.tried(f"it reads {path.removeprefix(os.path.dirname(ROOT) + os.sep)}")
            raise PermissionError(f"{path} may not be read in this exercise")

    @contextmanager
    def over(self) -> Iterator[None]:
        """Inside, the answer runs: forbidden modules that are loaded already are out of reach."""
        loaded = set(sys.modules)
        hidden: dict[str, ModuleType] = {
            name: module
            for name, module in sys.modules.items()
            if self.forbids(name) or name in MEASURES or (name == STARTS and "subprocess" in loaded)
        }
        for name in hidden:
            del sys.modules[name]
        detached = [
            (parent, last, getattr(parent, last))
            for name in hidden
            for stem, _, last in [name.rpartition(".")]
            if (parent := sys.modules.get(stem) or hidden.get(stem)) and last in vars(parent)
        ]
        for parent, last, _ in detached:
            delattr(parent, last)
        sys.meta_path.insert(0, self)
        ACTIVE.append(self)
        unread = _hide_lines({**sys.modules, **hidden})
        try:
            yield
        finally:
            for path in unread:
                linecache.cache.pop(path, None)
            ACTIVE.remove(self)
            with suppress(ValueError):  # the answer has taken it out
                sys.meta_path.remove(self)
            for parent, last, value in detached:
                setattr(parent, last, value)
            sys.modules.update(hidden)


def _modules(path: str) -> Iterator[str]:
    """The modules of minidist that a file may be, in this installation or in another one."""
    parts = os.path.splitext(path)[0].split(os.sep)
    for place, part in enumerate(parts):
        root = os.sep.join(parts[: place + 1])
        if part == "minidist" and os.path.isfile(os.path.join(root, "exercises", "names.py")):
            yield ".".join(parts[place:])


def _hide_lines(modules: dict[str, ModuleType]) -> list[str]:
    """Tell linecache that the marker's own files have no lines; returns their paths.

    A warning or a traceback that passes through them is printed with its line of source, which
    linecache reads: that is no trick of the answer.
    """
    files = [  # by the file: the module that was started is called __main__
        str(module.__file__)
        for module in modules.values()
        if str(getattr(module, "__file__", "")).startswith(OWN)
    ]
    for file in files:
        linecache.cache[file] = (0, None, [], file)  # without a time: it is not looked up again
    return files


ACTIVE: list[Watch] = []  # while an answer runs
LOOKING = threading.local()  # looking for who calls is an event too


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if getattr(LOOKING, "now", False):
        return
    for watch in ACTIVE:
        LOOKING.now = True
        try:
            watch.heard(event, arguments)
        finally:
            LOOKING.now = False


sys.addaudithook(_heard)  # one for good: Python cannot take a hook away


class Counts:
    """What one rank has sent: messages, bytes, and (call, peer, elements) in order."""

    def __init__(self) -> None:
        self.messages, self.nbytes = 0, 0
        self.log: list[tuple[str, int, int]] = []

    def sent(self, call: str, array: Any, peer: int) -> None:
        self.messages += 1
        self.nbytes += array.nbytes
        self.heard(call, array, peer)

    def heard(self, call: str, array: Any, peer: int) -> None:
        self.log.append((call, int(peer), int(array.size)))


# What is behind each StudentComm: the true comm, the counts, the watch. None of its attributes
# leads there, so an answer does not come upon it.
INNER: WeakKeyDictionary[StudentComm, tuple[Any, Counts, Watch | None]] = WeakKeyDictionary()


def barrier(comm: StudentComm) -> None:
    """Wait for all ranks, for what an exercise measures: these messages are not counted."""
    INNER[comm][0].barrier()


class StudentComm:
    """A rank's ``comm`` as an answer sees it: what the exercise offers, and no more."""

    def __init__(self, comm: Any, counts: Counts, watch: Watch | None = None) -> None:
        self.rank, self.size = comm.rank, comm.size
        INNER[self] = comm, counts, watch

    def send(self, array: Any, to: int, tag: int = 0) -> None:
        comm, counts, _ = INNER[self]
        counts.sent("send", array, to)
        comm.send(array, to, tag)

    def isend(self, array: Any, to: int, tag: int = 0) -> Any:
        comm, counts, _ = INNER[self]
        counts.sent("isend", array, to)
        return comm.isend(array, to, tag)

    def recv(self, array: Any, source: int = -1, tag: int = 0) -> int:
        comm, counts, _ = INNER[self]
        counts.heard("recv", array, source)
        return comm.recv(array, source, tag)

    def irecv(self, array: Any, source: int = -1, tag: int = 0) -> Any:
        comm, counts, _ = INNER[self]
        counts.heard("irecv", array, source)
        return comm.irecv(array, source, tag)

    def sendrecv(self, send: Any, to: int, recv: Any, source: int, tag: int = 0) -> int:
        comm, counts, _ = INNER[self]
        counts.sent("sendrecv", send, to)
        return comm.sendrecv(send, to, recv, source, tag)

    def spawn(self, function: Any, *arguments: Any) -> Any:
        """Run ``function(stream, *arguments)`` on this rank's communication stream."""
        comm, counts, watch = INNER[self]
        return comm.spawn(lambda stream: function(StudentComm(stream, counts, watch), *arguments))

    def __getattr__(self, name: str) -> Any:
        comm, _, watch = INNER[self]
        if watch is not None and hasattr(comm, name):
            watch.tried(f"it uses comm.{name}")
        raise AttributeError(
            f"comm.{name} is not offered in this exercise: there are comm.rank, comm.size, "
            "comm.send, comm.recv, comm.sendrecv, comm.isend, comm.irecv and comm.spawn"
        )
