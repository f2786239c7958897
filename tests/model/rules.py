"""The protocol's rules by label, so that a mutant can leave one out.

Owns the list: the clauses of conditions, labelled as in `tenuto.lane.transitions`, and the practices around the writes,
whose labels begin with what they are about. Does not own what a rule does where it is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

CLAUSES: dict[str, str] = {
    "spec.ver": "a batch is committed on the head that it ran from",
    "spec.idle": "a batch is committed to an idle lane",
    "spec.watermark": "a batch begins at or above the watermark",
    "spec.pend": "a batch does not overtake the inbox",
    "spec.clear": "the commit that clears the mark saw that mark before it looked into the inbox",
    "claim.ver": "as spec.ver",
    "claim.idle": "as spec.idle",
    "claim.watermark": "as spec.watermark",
    "claim.pend": "as spec.pend",
    "checkpoint.ver": "only the attempt that the lane belongs to journals",
    "checkpoint.own": "of two twins, the first to write owns",
    "suspend.ver": "only the attempt that the lane belongs to suspends",
    "suspend.own": "as checkpoint.own",
    "suspend.awake": "a suspension is of a run that is awake: one that was applied stands, regardless of later answers",
    "suspend.ans": "no suspension over an answer that the attempt has not seen",
    "join.ver": "as commit.ver, where the next run is claimed in the same write",
    "join.own": "as checkpoint.own",
    "join.pend": "as claim.pend",
    "nap.ver": "only the attempt that the lane belongs to naps",
    "nap.own": "as checkpoint.own",
    "nap.awake": "a nap is of a run that is awake",
    "takeover.ver": "two processes do not take over at once, and none takes over a run that naps meanwhile",
    "takeover.run": "a takeover is of the run that was seen",
    "takeover.awake": "a run that was seen running has not been suspended since",
    "commit.ver": "only the attempt that the lane belongs to ends the run",
    "commit.own": "as checkpoint.own",
    "slot.run": "an answer goes to the run it is for",
    "slot.free": "an answer is given once",
    "slot.ans": "an answer is put beside the answers that were seen",
    "inbox.absent": "a message is put once",
    "clear.ver": "the mark is cleared on the head that was read before the query",
    "clear.pend": "only the mark that was seen is cleared",
    "clear.idle": "the mark is cleared on an idle lane",
}
"""Clauses of conditions, with what each says."""

PRACTICES: dict[str, str] = {
    "tok.own": "a writer recognises its own write after a lost response",
    "tok.versioned": "`tok` changes with `ver` and with nothing else",
    "result.stored": "a call's result is written with its effects, and looked for before it runs",
    "fin.kept": "finished messages and calls are remembered until their tombstone or result is there",
    "inbox.tombstone": "a drained item becomes a tombstone, not a gap",
    "inbox.order": "the lowest position of each source is drained first",
    "inbox.passed": "an item below the watermark is deleted, not run",
    "inbox.after_head": "the head is read first, then the inbox",
    "result.after_head": "the head is read first, then the result item",
    "mark.unique": "each mark is a separate token",
    "mark.again": "an item that already exists is marked as well",
    "guard.message": "a guard before a message's mark",
    "guard.call": "a guard before a call's claim",
    "guard.send": "a guard before a call's commit that sends",
    "guard.answer": "a guard before an answer",
    "guard.spill": "a guard before a spilled event's mark",
    "guard.nonce": "each guard is a separate item",
    "guard.ver": "a guard is kept while its write may still arrive",
    "suspend.stands": "a suspension that is refused because an earlier try was applied has happened",
    "suspend.heard": "no suspension before the handler has heard of the answers that a flush has met",
    "timer.first": "a sleep's timer before its suspension",
    "timer.kept": "a timer that finds nothing to do stays until its invocation is over",
    "sweep.again": "the head is read again before a guard is deleted",
    "sweep.out": "a guard stays while the outbox is not empty",
    "offset.trimmed": "an offset is released when the outbox is trimmed, not when it is delivered",
    "offset.asleep": "a suspended event's offset, too, is released when what it sent is trimmed",
    "offset.run": "an offset is held while its event's run is active",
    "offset.owner": "only the partition's owner commits offsets",
    "out.after_put": "an outbox entry is cleared after it was delivered",
    "base.kept": "first-seen state is kept beside published state",
    "base.value": "first-seen state is written as a value, not copied from the item",
    "slots.apart": "slots are written one by one, never the journal whole",
    "journal.new": "the function is invoked with the head that the takeover left",
    "nap.keeper": "the attempt after a nap is begun by the process that the lane was left to, or after a takeover",
    "nap.once": "it is begun once",
    "nap.lease": "no process takes over a run that naps before its lease ends",
    "sleep.due": "a sleep wakes its run when its time has come",
    "slot.took": "an answer that left the head for a segment is known to be given",
    "wake.ans": "an answer that the list's mark does not know of wakes a run whose awaited slots are not all listed",
    "segment.unique": "each segment item has a name of its own",
    "segment.truth": "the head's list of segments is taken over with every head that is learned",
}
"""What is done around the writes, and in which order."""

LABELS = {**CLAUSES, **PRACTICES}


@dataclass(frozen=True, slots=True)
class Rules:
    """The protocol, or a mutant of it: `without` some rules."""

    without: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if unknown := self.without - LABELS.keys():
            raise ValueError(f"no such rule: {sorted(unknown)}")

    def __contains__(self, label: str) -> bool:
        """Whether the rule is followed."""
        return label not in self.without
