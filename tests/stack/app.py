"""The function of the end-to-end tests: an object and a service whose jobs do what a test asks of them.

Owns the handlers and the notes they leave outside. Does not own what a test makes of them.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from tenuto import Context, ObjectContext, ObjectSharedContext, Service, TerminalError, VirtualObject, aws

NOTES_VARIABLE = "TENUTO_TEST_NOTES"
"""Environment variable that names the file of notes."""

ECHO_TOPIC = "echoes"
NAP = timedelta(seconds=1)
HANG_S = 60.0
MUSING_S = 2.0


class Note(msgspec.Struct, frozen=True):
    """Something that happened outside: `what`, for whom, when (seconds since the epoch)."""

    key: str
    what: str
    at_s: float


class Job(msgspec.Struct, frozen=True):
    """What `account/work` shall do; `text` is for jobs that need one."""

    kind: str
    text: str = ""


def note(key: str, what: str) -> str:
    """Leave a note outside. One write to a file opened for appending: whole and in order."""
    notes = os.open(os.environ[NOTES_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(notes, msgspec.json.encode(Note(key, what, time.time())) + b"\n")
    finally:
        os.close(notes)
    return what


def notes(path: Path) -> list[Note]:
    """All notes, in order."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Note) for line in path.read_bytes().splitlines()]


def noted(key: str, what: str) -> bool:
    """Whether a note is there already."""
    return any(one.key == key and one.what == what for one in notes(Path(os.environ[NOTES_VARIABLE])))


def die_once(key: str) -> None:
    """End the process in the middle of a step, the first time."""
    first = not noted(key, "two")
    note(key, "two")
    if first:
        os._exit(7)


async def dwell(key: str, ms: int) -> None:
    """A step that takes its time."""
    note(key, "dwelling")
    await asyncio.sleep(ms / 1_000)


account = VirtualObject("account")
mail = Service("mail")


@account.handler()
async def add(ctx: ObjectContext, amount: int | None) -> int:
    if amount is None:
        ctx.set("tombstones", (await ctx.get("tombstones", int) or 0) + 1)
        return 0
    total = (await ctx.get("total", int) or 0) + amount
    ctx.set("total", total)
    if ctx.request().header("keep-headers"):
        ctx.set("headers", [[name, value.decode()] for name, value in ctx.request().headers])
    return total


@account.handler(kind="shared")
async def show(ctx: ObjectSharedContext) -> dict[str, Any]:
    return {name: await ctx.get(name) for name in await ctx.state_keys()}


@account.handler()
async def work(ctx: ObjectContext, job: Job) -> str:  # noqa: C901, PLR0912 - one case for each kind of job
    key = ctx.key
    match job.kind:
        case "note":
            await ctx.run("note", note, key, job.text)
        case "nap":
            await ctx.run("before", note, key, f"before {job.text}")
            await ctx.sleep(NAP)
            await ctx.run("after", note, key, f"after {job.text}")
        case "tell":
            ctx.object_send(add, job.text, 5, send_delay=NAP)
        case "wait":
            identity, answer = ctx.awakeable(str)
            await ctx.run("hand out", note, key, identity)
            ctx.set("answer", await answer)
        case "echo":
            ctx.publish(ECHO_TOPIC, {"text": job.text}, key=key, headers={"origin": "account"})
        case "refuse":
            raise TerminalError(job.text, 409, {"account": key})
        case "fail":
            raise RuntimeError("this always fails")
        case "hang":
            if not noted(key, "hanging"):
                note(key, "hanging")
                time.sleep(HANG_S)  # noqa: ASYNC251 - code that blocks its process is what the test is about
            await ctx.run("note", note, key, "went on")
        case "muse":
            note(key, "musing")
            time.sleep(MUSING_S)  # noqa: ASYNC251 - it works for long without a durable step
            ctx.set("mused", True)
        case "doze":
            await ctx.sleep(timedelta(seconds=float(job.text)))
            ctx.set("order", [])
        case "follow":
            ctx.set("order", [*(await ctx.get("order", list[int]) or [])[-1:], int(job.text)])
            ctx.set("followed", (await ctx.get("followed", int) or 0) + 1)
        case "stamp":
            note(key, job.text)
        case "dwell":
            await ctx.run("dwell", dwell, key, int(job.text))
        case "crash":
            await ctx.run("one", note, key, "one")
            await ctx.run("two", die_once, key)
            await ctx.run("three", note, key, "three")
        case _:
            raise TerminalError(f"there is no job {job.kind!r}", 400)
    return job.kind


@account.handler()
async def answer(ctx: ObjectContext, awakeable: str) -> None:
    ctx.resolve_awakeable(awakeable, f"from {ctx.key}")


@mail.handler()
async def post(ctx: Context, text: str) -> str:
    return await ctx.run("post", note, "mail", text)


handler = aws.handler(account, mail)
