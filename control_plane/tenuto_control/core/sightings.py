"""When a process has seen the head of a lane, and what that shows of the others that use the lane.

Owns when runs of others began and how long such runs last, as far as can be seen, and for how long they may look for
what has finished. Does not own what follows for the next look (`lane_policy`), nor the rest of what is remembered
(`lane_memory`). A struct for the reason that `lane_memory` gives.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from tenuto.protocol.messages import Head

TOLD_MS: Final = 2_000
TOLD_MAX: Final = 64
"""So long, and so many, finished ids stay in the head of a lane whose inbox was marked: no process that waits for one
looks less often. Each write of a head is paid by its size."""

LASTS_FIRST_MS: Final = 250
"""So long, at the most, a run after short ones is thought to last, and each further one twice as long as the one
before: unless two in a row show that they last longer."""

ALIKE_TIMES: Final = 2
ALIKE_MS: Final = 60
"""Two runs are alike if the longer one lasts at most so many times as long, and so much longer, as the other."""

ENDED_AND_BEGUN: Final = 2
"""What the end of one run and the claim of the next add to `ver`."""


KNOWN_WITHIN_MS: Final = 100
"""When a run has ended is known well enough if it was seen at work within so long."""


class Sighting(Struct, frozen=True):
    """When this process learned of the head: last (`read_ms`), and of the head as it is (`changed_ms`).

    `mark` tells one head from the next: its `ver`, and how many slots its run has. `began_ms` is when the run that is
    at work in this head began; None when there is none. `lasts_ms` is how long such a run lasts, as far as those before
    it show: what is longer than they were is believed by and by. `alike`: the last two have lasted about as
    long as each other. The inbox was marked when it was seen at `marked_ms`. The run at work is of `handler`.
    """

    read_ms: int = 0
    changed_ms: int = 0
    mark: tuple[int, int] | None = None
    began_ms: int | None = None
    lasts_ms: int = 0
    marked_ms: int = -TOLD_MS
    lasted_ms: int | None = None
    alike: bool = False
    handler: str | None = None

    def again(self, head: Head, now_ms: int) -> Sighting:
        """The head was seen once more."""
        mark, run = (head.ver, len(head.slots)), head.run
        marked_ms = self.marked_ms if head.pend is None else now_ms
        if mark == self.mark:
            return replace(self, read_ms=now_ms, marked_ms=marked_ms)
        working = run is not None and not run.suspended
        if self.mark is not None and self.mark[0] == head.ver and working:
            # It is the same run, which has got on.
            return replace(self, read_ms=now_ms, changed_ms=now_ms, mark=mark, marked_ms=marked_ms)
        began_ms = None if run is None or not working else max(self.read_ms, min(run.start_ms, now_ms))
        lasts_ms, lasted_ms = self.lasts_ms, self._lasted(head, began_ms or now_ms)
        alike = self.alike
        if lasted_ms is None:
            lasted_ms = self.lasted_ms
        else:
            alike = self.lasted_ms is not None and _alike(lasted_ms, self.lasted_ms)
            by_and_by_ms = lasted_ms if self.lasted_ms is None else max(self.lasted_ms, 2 * lasts_ms + LASTS_FIRST_MS)
            lasts_ms = min(lasted_ms, by_and_by_ms)
        handler = None if run is None or began_ms is None else run.event.handler
        return Sighting(now_ms, now_ms, mark, began_ms, lasts_ms, marked_ms, lasted_ms, alike, handler)

    def over(self, head: Head, now_ms: int) -> tuple[str, int] | None:
        """The handler of the run that was at work when the head was seen last, and how long it has lasted.

        None if that is not over, or not known well: several may have ended since, or it some time ago.
        """
        if self.handler is None or self.began_ms is None or self.mark is None:
            return None
        if not 0 < head.ver - self.mark[0] <= ENDED_AND_BEGUN:
            return None
        run = head.run
        if run is not None and not run.suspended:
            return self.handler, max(0, min(run.start_ms, now_ms) - self.began_ms)
        return (self.handler, now_ms - self.began_ms) if now_ms - self.read_ms <= KNOWN_WITHIN_MS else None

    @property
    def marked(self) -> bool:
        """Whether the inbox was marked when it was seen last."""
        return self.marked_ms == self.read_ms

    def told(self, head: Head) -> frozenset[str]:
        """The ids of what has finished that processes whose callers wait may look into this head for."""
        if self.read_ms - self.marked_ms >= TOLD_MS:
            return frozenset()
        since_ms = self.read_ms - TOLD_MS
        lately = [nonce for nonce, at in head.fin.items() if at > since_ms]
        return frozenset(sorted(lately, key=head.fin.__getitem__)[-TOLD_MAX:])

    def _lasted(self, head: Head, ended_ms: int) -> int | None:
        """How long runs have lasted that had ended by this time, when the next one began or the lane was read."""
        if self.began_ms is None or self.mark is None:
            return None
        runs = max(1, (head.ver - self.mark[0]) // ENDED_AND_BEGUN)
        return max(0, (ended_ms - self.began_ms) // runs)


def _alike(one_ms: int, other_ms: int) -> bool:
    """Whether two runs have lasted about as long as each other."""
    return max(one_ms, other_ms) <= ALIKE_TIMES * min(one_ms, other_ms) + ALIKE_MS
