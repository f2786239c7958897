"""The command line of the demo.

Owns the options and the first lines a person reads, which come before anything slow is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tenuto_control.arguments import Parser, whole
from tenuto_local.commands import forget_own_services, repository, run_to_end
from tenuto_local.errors import LocalStackError

EVENTS_DEFAULT = 300
EVENTS_MIN, EVENTS_MAX = 30, 2_000
SEED_MAX = 2**32 - 1
PLAN = """\
tenuto demo: {events} events through three examples, on a real broker, DynamoDB Local and function processes
  user_updates       three systems kept in step; a user that is not ready sleeps, its neighbours run
  profile_enricher   two topics and HTTP into one object, sent on after a second
  food_order         payment, kitchen, a driver's answer over HTTP, and undoing what was done
One function process is killed after a second step. Two minutes at most; Ctrl-C ends it and leaves nothing behind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. 0: the outcome is the truth; 1: it is not, or something did not start; 130: interrupted."""
    options = _parser().parse_args(arguments)
    print(PLAN.format(events=options.events), flush=True)
    try:
        sys.path.insert(0, str(repository()))
    except LocalStackError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    forget_own_services(
        "the demo starts from nothing",
        "TENUTO_BOOTSTRAP_SERVERS",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_DYNAMODB",
    )
    # Imported here: the clients take half a second, and the plan comes first.
    from tenuto_local.demo.run import demo

    return run_to_end("demo", demo(options.events, options.seed, live=options.live and sys.stdout.isatty()))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m tenuto_local.demo", description="The examples on a real stream, checked against the truth."
    )
    parser.add_argument(
        "--events",
        type=whole(EVENTS_MIN, EVENTS_MAX),
        default=EVENTS_DEFAULT,
        help=f"how many events (default: {EVENTS_DEFAULT})",
    )
    parser.add_argument("--seed", type=whole(0, SEED_MAX), default=1, help="which stream (default: 1)")
    parser.add_argument("--no-live", dest="live", action="store_false", help="plain lines, also on a terminal")
    return parser
