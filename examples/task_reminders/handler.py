"""Tasks that events schedule: each runs once, at its own time, unless a later event moves or cancels it."""

from __future__ import annotations

import msgspec

from examples.task_reminders.outside import remind
from tenuto import ObjectContext, ObjectSharedContext, VirtualObject, aws

DONE = "tasks-done"


class Task(msgspec.Struct, frozen=True):
    """What is to be done, and when, in seconds since the epoch. `due_s` None cancels it."""

    text: str
    due_s: int | None = None


class Scheduled(msgspec.Struct, frozen=True):
    """A task with the number of its schedule: every change of it makes the messages of the one before harmless."""

    task: Task
    number: int


task = VirtualObject("task")


@task.handler()
async def changed(ctx: ObjectContext, wish: Task) -> None:
    before = await ctx.get("scheduled", Scheduled)
    number = before.number + 1 if before is not None else 1
    ctx.set("scheduled", Scheduled(wish, number))
    if wish.due_s is not None:
        wait_s = max(0.0, wish.due_s - ctx.time())
        ctx.object_send(due, ctx.key, number, send_delay=wait_s)


@task.handler()
async def due(ctx: ObjectContext, number: int) -> None:
    scheduled = await ctx.get("scheduled", Scheduled)
    if scheduled is None or scheduled.number != number:
        return
    await ctx.run("remind", remind, ctx.key, scheduled.task.text)
    ctx.publish(DONE, scheduled.task.text, key=ctx.key)
    # The number stays: an event that arrives twice must not run the task again.
    ctx.set("scheduled", Scheduled(msgspec.structs.replace(scheduled.task, due_s=None), number))


@task.handler(kind="shared")
async def show(ctx: ObjectSharedContext) -> Task | None:
    scheduled = await ctx.get("scheduled", Scheduled)
    return None if scheduled is None else scheduled.task


handler = aws.handler(task)
