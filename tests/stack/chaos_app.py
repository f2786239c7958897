"""What runs while its processes are killed: one object that folds its events, of six kinds, into a hash chain.

Owns the handlers and the record of every execution of a step. Does not own what should have come of them
(`chaos_truth`).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Literal

import msgspec

from tenuto import InvocationRetryPolicy, ObjectContext, VirtualObject, aws, idempotency_key

LEDGER_VARIABLE = "TENUTO_CHAOS_LEDGER"
"""Environment variable that names the ledger's file."""

KEYS_VARIABLE = "TENUTO_CHAOS_CONCURRENT_KEYS"
"""Environment variable that says how many keys an invocation may work on at a time."""

OUT_TOPIC = "chaos-out"
NAP = timedelta(milliseconds=600)
"""Long enough for the function to return instead of waiting."""

STUMBLES = 0.4
"""The share of the attempts at a flaky event that fail, at each of two places."""

Kind = Literal["fold", "steps", "nap", "ask", "flaky", "send"]


class Event(msgspec.Struct, frozen=True):
    """One event of a key; `number` is unique in the whole stream."""

    number: int
    kind: Kind


class Question(msgspec.Struct, frozen=True):
    """An awakeable, and what it shall be resolved with."""

    awakeable: str
    number: int


class Execution(msgspec.Struct, frozen=True):
    """One execution of a step, in the order in which the outside saw them.

    `given` are the results of the steps before it, which must never change once they were given to a later step.
    """

    number: int
    step: str
    idempotency_key: str
    answer: str
    given: tuple[str, ...]
    pid: int
    at_s: float


def link(before: str, partition: int, offset: int, number: int) -> str:
    """The next link of a key's chain."""
    return hashlib.sha256(f"{before}|{partition}|{offset}|{number}".encode()).hexdigest()[:24]


def execute(number: int, step: str, *given: str) -> str:
    """A step's effect: one line in the ledger, with an answer that no other execution gives."""
    answer = uuid.uuid4().hex[:12]
    done = Execution(number, step, idempotency_key(), answer, given, os.getpid(), time.time())
    # One write to a file opened for appending: whole, and in one order, however many processes there are.
    ledger = os.open(os.environ[LEDGER_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(ledger, msgspec.json.encode(done) + b"\n")
    finally:
        os.close(ledger)
    return answer


def stumble() -> None:
    """Fail now and then, as code in the wild does."""
    if random.random() < STUMBLES:
        raise RuntimeError("stumbled")


def executions(path: Path) -> list[Execution]:
    """What the ledger holds."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Execution) for line in path.read_bytes().splitlines()]


chain = VirtualObject("chain")
tally = VirtualObject("tally")


@chain.handler(retry_policy=InvocationRetryPolicy(max_interval=timedelta(seconds=1)))
async def fold(ctx: ObjectContext, event: Event) -> None:
    number = event.number
    match event.kind:
        case "fold":
            pass
        case "steps":
            first = await ctx.run("first", execute, number, "first")
            second = await ctx.run("second", execute, number, "second", first)
            await ctx.run("third", execute, number, "third", first, second)
        case "nap":
            before = await ctx.run("before", execute, number, "before")
            ctx.set("napping", number)
            await ctx.sleep(NAP)
            await ctx.run("after", execute, number, "after", before)
            ctx.clear("napping")
        case "ask":
            identity, answer = ctx.awakeable(int)
            before = await ctx.run("before", execute, number, "before")
            ctx.object_send(reply, ctx.key, Question(identity, number))
            if await answer != number:
                raise ValueError(f"event {number} got the answer to another question")
            await ctx.run("after", execute, number, "after", before)
        case "flaky":
            first = await ctx.run("first", execute, number, "first")
            stumble()
            await ctx.run("second", execute, number, "second", first)
            stumble()
        case "send":
            ctx.object_send(count, ctx.key, number)
            ctx.publish(OUT_TOPIC, {"number": number}, key=ctx.key)
    origin = ctx.request().kafka
    if origin is None:
        raise ValueError("chain/fold is for events from Kafka")
    ctx.set("chain", link(await ctx.get("chain", str) or "", origin.partition, origin.offset, number))
    ctx.set("length", (await ctx.get("length", int) or 0) + 1)


@tally.handler()
async def count(ctx: ObjectContext, number: int) -> None:
    ctx.set("numbers", [*(await ctx.get("numbers") or []), number])


@tally.handler()
async def reply(ctx: ObjectContext, question: Question) -> None:
    ctx.resolve_awakeable(question.awakeable, question.number)


@tally.handler()
async def call(ctx: ObjectContext, number: int) -> int:
    await ctx.run("call", execute, number, "call")
    ctx.set("calls", [*(await ctx.get("calls") or []), number])
    return number


handler = aws.handler(chain, tally, concurrent_keys=int(os.environ.get(KEYS_VARIABLE, "1")))


def encode(event: Event) -> bytes:
    """An event as a record's value."""
    return json.dumps(msgspec.to_builtins(event)).encode()
