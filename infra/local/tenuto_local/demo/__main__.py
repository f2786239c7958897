"""`python -m tenuto_local.demo`: an interrupt first, then the command (`command`)."""

from __future__ import annotations

import sys

from tenuto_local import interrupts


def run() -> int:
    """Run the command; its exit status."""
    interrupts.end_at_once()
    from tenuto_local.demo.command import main  # Imported here: it takes a while, in which a Ctrl-C may come.

    status = main()
    interrupts.over()
    return status


if __name__ == "__main__":
    sys.exit(run())
