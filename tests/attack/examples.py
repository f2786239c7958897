"""How many members of a kind are generated: few in `make test`, many in `make prove`.

Owns the factor. Does not own what is generated.
"""

from __future__ import annotations

import os
from typing import Final

TIMES: Final = "TENUTO_ATTACK_TIMES"
"""Set in the environment, so many times as many members are tried."""

EVERY: Final = "TENUTO_EVERY_COMBINATION"
"""Set in the environment, all combinations of requests are played; otherwise a share, another one for each kind."""


def examples(quick: int) -> int:
    """The number of generated members, where `make test` tries `quick`."""
    return quick * int(os.environ.get(TIMES, "1"))
