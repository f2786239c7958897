"""How much of what functions share each of them may hold: lanes at work, memory, room for requests.

Owns the one rule. Does not own what is shared, nor who waits for it (`dispatcher.lane_places`, `dispatcher.capacity`).
"""

from __future__ import annotations


def may_take(size: int, own: int, others: int, most: int) -> bool:
    """Whether a function that holds `own` of `most` may take `size` more, while other functions hold `others`.

    It may hold half of what the others leave, or else one that never gives anything back would hold it all. The first
    that it takes is not measured by that.
    """
    return own == 0 or own + size <= (most - others) // 2
