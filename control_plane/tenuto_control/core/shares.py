"""How much of what functions share each of them may hold: places, lanes at work, memory, waiting callers.

Owns the one rule. Does not own what is shared, nor who waits for it or is refused (`dispatcher.lane_places`,
`dispatcher.capacity`, `dispatcher.room`).

Half of what is shared is divided evenly and kept for the functions that there are; the other half goes to who comes
first. So one that never gives anything back takes nothing from what is kept for the others, however many do so, and
where there is only one function it has everything.
"""

from __future__ import annotations

from collections.abc import Iterable


def kept(most: int, functions: int) -> int:
    """What is kept for each function, whatever the others hold."""
    return max(1, most // (2 * functions))


def may_take(size: int, own: int, others: Iterable[int], most: int, functions: int) -> bool:
    """Whether a function that holds `own` of `most` may take `size` more.

    `others` is what each other function holds that holds anything; `functions` is how many there are.
    """
    its_own = kept(most, functions)
    if own + size <= its_own:
        return True
    taken, idle = own + size, functions - 1
    for held in others:
        taken += max(held, its_own)
        idle -= 1
    return taken + its_own * max(0, idle) <= most
