"""Which waiting events of a lane go into one activation.

Owns the choice: order, size, and that nothing runs which has taken effect already. Does not own the queue
(`lane_worker`), nor how inbox items are chosen (`inbox`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tenuto.lane.transitions import outgoing_results, result_key, stored_result
from tenuto.protocol.limits import POOLED_BYTES_MAX
from tenuto.protocol.messages import ClaimedRun, Head
from tenuto.protocol.records import Failed, Failure, KafkaSource, event_bytes
from tenuto_control.core.lane_policy import finished, passed
from tenuto_control.dispatcher.heads import head_bytes
from tenuto_control.dispatcher.parts import Parts
from tenuto_control.dispatcher.work import CallWork, Elsewhere, KafkaWork, Work

LOST_WITH_ITS_PROCESS = "the call took effect, and its result was lost with the process that ran it"


async def choose(services: Parts, head: Head, queue: Iterable[Work], *, one_by_one: bool) -> tuple[Work, ...]:
    """The work that the next activation is about; calls that a stored result answers are answered instead.

    The head was read before what is looked up here, as it must be.
    """
    limits = services.limits
    events_max = 1 if one_by_one else limits.batch_events_max
    batch: list[Work] = []
    last: dict[str, int] = {}
    size = 0
    for work in list(queue):
        if isinstance(work, CallWork) and (work.keep or await _answered(services, work, head)):
            continue
        source = work.event.source
        if passed(head, work.event):
            # Delivered again behind an event of another partition: it is released when its turn comes. In a
            # batch it would take effect twice, so storage would refuse the commit, indefinitely.
            continue
        if isinstance(source, KafkaSource):
            # What was delivered again waits for the next head, whose watermark tells what of it is finished.
            if source.offset <= last.get(source.watermark, -1):
                continue
            last[source.watermark] = source.offset
        size += event_bytes(work.event)
        if batch and (size > limits.batch_bytes_max or len(batch) >= events_max):
            break
        batch.append(work)
        if isinstance(work, CallWork):
            # Were it committed by the claim of an event behind it, its result would be lost with the function.
            break
    # Callers may have gone away while results were looked up.
    waiting = [w for w in batch if not (isinstance(w, CallWork) and w.over)]
    return tuple(waiting)


def behind(services: Parts, head: Head, run: ClaimedRun, queue: Iterable[Work]) -> list[KafkaWork]:
    """The queued events that may follow a run in the activation that resumes it.

    Of calls none does, for their results would be lost with the function; nor does what comes after the inbox.
    """
    limits, receivers, service = services.limits, services.receivers, run.event.invocation.lane.service
    works: list[KafkaWork] = []
    source = run.event.source
    last = {source.watermark: source.offset} if isinstance(source, KafkaSource) else {}
    size = 0
    for work in queue if head.pend is None else ():
        event, source = work.event, work.event.source
        if not isinstance(work, KafkaWork) or not isinstance(source, KafkaSource):
            break
        size += event_bytes(event)
        if (
            size > limits.batch_bytes_max
            or len(works) >= limits.batch_events_max
            or passed(head, event)
            # Delivered again, or the run's own.
            or source.offset <= last.get(source.watermark, -1)
            or receivers.problem(service, event.handler) is not None
        ):
            break
        last[source.watermark] = source.offset
        works.append(work)
    return works


def with_room(head: Head, following: Sequence[KafkaWork]) -> list[KafkaWork]:
    """As many of those that follow a run as leave its request small enough to share an invocation."""
    size, found = head_bytes(head), []
    for work in following:
        size += event_bytes(work.event)
        if size > POOLED_BYTES_MAX // 2:
            break
        found.append(work)
    return found


async def _answered(services: Parts, work: CallWork, head: Head) -> bool:
    """Whether a stored result answers a call, or a delayed message will."""
    if work.checked is head:
        return False
    outgoing = outgoing_results(head).get(work.event.id)
    if outgoing is not None:
        # Committed elsewhere, and not delivered yet: whoever was to do that may be gone.
        work.finish(outgoing)
        return True
    if work.stores or work.attempted:
        key = result_key(work.event.id)
        item = await services.writer.patiently(lambda: services.writer.table.get(key))
        result = stored_result(item)
        if result is not None:
            work.finish(result)
            return True
        if item is not None:
            due_ms = item.get("begins")
            work.finish(Elsewhere(due_ms if isinstance(due_ms, int) else None))
            return True
    if finished(head, work.event, services.clock.now_ms()):
        work.finish(work.tentative or Failed(Failure(LOST_WITH_ITS_PROCESS, 500)))
        return True
    work.checked = head
    work.unkept = False
    return work.answer.cancelled()
