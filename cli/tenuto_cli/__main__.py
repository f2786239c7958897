"""Entry point of `tenuto` and `python -m tenuto_cli`: sets the handler of Ctrl-C, then runs the command (`program`).

Owns the time until a command runs: an interrupt ends the process with status 130 and prints nothing, whatever is being
imported. Imports nothing at the top, so that this time begins at once.
"""


def main() -> int:
    """Run the command line of this process and return the exit status."""
    try:
        from tenuto_local import interrupts

        interrupts.end_at_once()
        from tenuto_cli import program

        status = program.main()
        interrupts.over()
    except KeyboardInterrupt:  # Before or between the handlers above.
        return 130
    return status


if __name__ == "__main__":
    import sys

    sys.exit(main())
