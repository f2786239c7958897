"""Explore the model by hand: `python -m tests.model "steps" --without checkpoint.ver --states 200000`.

Owns the command line. Does not own what is explored.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

from tenuto_control.arguments import whole
from tests.model.programs import SCENARIOS
from tests.model.rules import LABELS, Rules
from tests.model.search import explore
from tests.model.state import Model

STATES_MAX = 300_000


def main() -> int:
    """The exit status: 1 when a law was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(SCENARIOS)}; none: all")
    parser.add_argument("--without", action="append", default=[], choices=sorted(LABELS), metavar="RULE")
    parser.add_argument(
        "--states", type=whole(1, 1_000_000_000), default=STATES_MAX, help="stop a scenario behind so many states"
    )
    parser.add_argument("--faults", type=whole(0, 100), help="faults in one history, instead of the scenario's bound")
    arguments = parser.parse_args()
    failed = False
    rules = Rules(frozenset(arguments.without))
    for name in arguments.scenario or SCENARIOS:
        scenario = SCENARIOS[name]
        if arguments.faults is not None:
            scenario = replace(scenario, faults=replace(scenario.faults, total=arguments.faults))
        began = time.monotonic()
        result = explore(Model(scenario, rules), arguments.states)
        print(f"{name}: {result.text()}, {time.monotonic() - began:.1f} s", flush=True)
        failed = failed or result.problem is not None
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
