"""``python -m minidist`` is the same as the ``minidist`` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command; ``run`` is started without loading the modules of the others."""
    if sys.argv[1:2] == ["run"]:
        from minidist.run.command import run

        return run(sys.argv[2:])
    from minidist import cli

    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
