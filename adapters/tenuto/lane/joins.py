"""The end of one run and the claim of the next in one write.

Owns that write, which is 7 and 2. Does not own when a run follows another (function runtime).
"""

from __future__ import annotations

from tenuto.lane.head import OWN
from tenuto.lane.transitions import NO_TRIM, Effects, claim, final_commit
from tenuto.lane.writes import Absent, AbsentOrEquals, Clause, Equals, Update
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import ClaimedRun, Head, Trim


def commit_and_claim(
    lane: Lane,
    head: Head,
    effects: Effects,
    run: ClaimedRun,
    tok: str,
    own: str,
    *,
    drain: bool,
    trim: Trim = NO_TRIM,
) -> Update:
    """7 and 2 in one: end a claimed run, and take the lease for the next event of its batch, `run`.

    `head` is the owner's view of what ends. Refused, too, when an event now waits in the inbox: then the run
    ends alone.
    """
    ends = final_commit(lane, head, effects, tok, own, trim=trim)
    begins = claim(lane, head, Effects(), run, tok, drain=drain)
    # A head that holds a run does not expire, whatever the run before it was.
    sets = {name: value for name, value in {**ends.sets, **begins.sets}.items() if name != "ttl"}
    removes = tuple(name for name in (*ends.removes, *begins.removes) if name not in sets)
    clauses: list[Clause] = [Equals("join.ver", "ver", head.ver), AbsentOrEquals("join.own", OWN, own)]
    if not drain:
        clauses.append(Absent("join.pend", "pend"))
    return Update(ends.key, sets, removes, tuple(clauses))


def may_continue(head: Head, *, drains: bool) -> bool:
    """Whether the next event may follow a commit at once: nothing has to be shipped or drained before it."""
    return not head.out and (head.pend is None or drains)
