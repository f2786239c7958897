"""`tenuto resolve AWAKEABLE [BODY]`: resolves or rejects an awakeable.

Owns the command line. Does not own the API.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tenuto_cli import addresses, http
from tenuto_cli.call import body_of, encoded
from tenuto_cli.parsing import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Parser, UsageError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = Parser(
        prog="tenuto resolve",
        description="Resolve an awakeable with BODY (as in tenuto call), or reject it with a reason.",
    )
    made.add_argument("awakeable", metavar="AWAKEABLE", help="its id, such as awk_…")
    made.add_argument("body", nargs="?", metavar="BODY", help="the value; default: none")
    made.add_argument("--reject", metavar="REASON", help="reject it with this reason")
    made.add_argument("--text", action="store_true", help="send BODY as a string, even if it looks like JSON")
    made.add_argument("--url", help="address of the control plane; default: that of the running tenuto dev")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    try:
        base = addresses.ingress(options.url)
        if options.reject is not None:
            way, body, kind = "reject", encoded(options.reject), "text/plain"
        else:
            way, body, kind = "resolve", body_of(options.body, as_text=options.text) or b"null", "application/json"
        path = http.segments("awakeables", options.awakeable, way)
        answer = http.request(base, "POST", path, body, {"content-type": kind})
    except UsageError as error:
        print(f"tenuto resolve: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if not answer.ok:
        print(f"tenuto resolve: {answer.problem()} ({answer.status})", file=sys.stderr)
        return EXIT_FAILED
    return 0
