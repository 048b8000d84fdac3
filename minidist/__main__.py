"""``python -m minidist`` is the same as the ``minidist`` command."""

from minidist.cli import main

raise SystemExit(main())
