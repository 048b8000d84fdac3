"""The computer of a comparison: cores, versions and the machine, as compare.json records them."""

from __future__ import annotations

import math
import os
import platform
import socket
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from minidist.comm.machine import Link, Machine

PACKAGES = ("numpy", "mpi4py", "cupy")


def versions() -> dict[str, str]:
    """The versions of Python and of the installed ``PACKAGES``, by name."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    """The computer's name, system and processor, and the number of cores this process may use."""
    return {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
    }


def memory() -> int:
    """Bytes of memory in this computer."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor() -> str:
    """The processor's name, from /proc/cpuinfo or else from Python."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def in_json(machine: Machine) -> dict[str, Any]:
    """A machine's fields; None for an infinite one."""
    found: dict[str, Any] = {}
    for one in fields(machine):
        value = getattr(machine, one.name)
        if isinstance(value, float) and math.isinf(value):
            value = None
        elif isinstance(value, Link):
            value = asdict(value)
        elif isinstance(value, dict):
            value = {str(key): str(link) for key, link in value.items()}
        elif not isinstance(value, (str, int, float, type(None))):
            value = str(value)
        found[one.name] = value
    return found
