"""Who is believed: ids that nobody can guess, and a function that encrypts whatever it is asked for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto import ObjectContext, VirtualObject, aws
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane, awakeable_slot, awakeable_token
from tenuto.protocol.messages import Activation, Head, to_builtins
from tenuto.protocol.records import Event, KafkaSource, Success
from tenuto.runtime.activation import activate
from tenuto.store.encrypted import EncryptedTable
from tenuto_control.ports import Resolution
from tests.costs.meter import meter_of
from tests.support.virtual_time import run_virtual

EVENT = Event(str(InvocationId(Lane("box", "k"), "n")), "act", KafkaSource("0", "t", 0, 0, 0), b"1")


def test_no_id_of_an_awakeable_follows_from_another_nor_from_its_invocation() -> None:
    """A caller is told the invocation's id, and may hold the id of one awakeable: it can answer that one alone."""
    box = VirtualObject("box")
    ids: list[str] = []

    @box.handler()
    async def act(ctx: ObjectContext, _n: int) -> None:
        first, _ = ctx.awakeable(str)
        second, answer = ctx.awakeable(str)
        await ctx.run("hand out", ids.extend, [first, second])
        ctx.set("answer", await answer)

    async def scenario() -> None:
        meter = meter_of(box)
        meter.deliver(act, "k")
        await meter.quiet()
        held, other = (AwakeableId.parse(name) for name in ids)
        tries = [
            held._replace(slot=other.slot),
            other._replace(token=held.token),
            other._replace(token="0" * 32),
            other._replace(token=""),
            other._replace(token=other.token[:-1]),
            other._replace(token=awakeable_token(b"", other.slot)),
            other._replace(token=awakeable_token(other.invocation.nonce.encode(), other.slot)),
            *(held._replace(slot=awakeable_slot(index)) for index in range(20) if awakeable_slot(index) != held.slot),
        ]
        for name in tries:
            assert await meter.dispatcher.resolve(str(name), Success(b'"mine"')) is Resolution.UNKNOWN, name
        assert await meter.dispatcher.resolve(ids[1], Success(b'"yes"')) is Resolution.ACCEPTED
        await meter.quiet()
        assert meter.head("box", "k").state["answer"] == b'"yes"'

    run_virtual(scenario())


def test_ids_hold_128_bits_that_differ_from_run_to_run() -> None:
    tokens = {awakeable_token(bytes([n]) * 16, slot) for n in range(50) for slot in ("0a", "1a")}
    assert len(tokens) == 100
    assert {len(bytes.fromhex(token)) for token in tokens} == {16}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_no_text_is_taken_for_an_id(text: str) -> None:
    async def scenario() -> None:
        meter = meter_of(VirtualObject("box"))
        for name in (text, "awk_" + text, "inv_" + text):
            assert await meter.dispatcher.resolve(name, Success(b"1")) is Resolution.UNKNOWN

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("own", "asked", "encrypts"), [(True, False, True), (True, True, True), (False, True, True), (False, False, False)]
)
def test_a_function_encrypts_what_its_own_environment_says(
    own: bool, asked: bool, encrypts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control plane that asks for clear text must not get it where the function was given a key."""
    box = VirtualObject("box")

    @box.handler()
    async def act(ctx: ObjectContext, _n: int) -> None:
        ctx.set("x", 1)

    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    if own:
        monkeypatch.setenv("TENUTO_KMS_KEY_ID", "alias/tenuto")
    else:
        monkeypatch.delenv("TENUTO_KMS_KEY_ID", raising=False)
    seen: list[Any] = []

    async def noted(_request: Any, _registry: Any, env: Any) -> Any:
        seen.append(env.table)
        return await real(_request, _registry, env)

    real = activate
    monkeypatch.setattr(aws, "activate", noted)

    class Context:
        def get_remaining_time_in_millis(self) -> int:
            return 5_000

    function = aws.handler(box)
    request = Activation("box", "k", "speculate", Head(), "h", (EVENT,), encrypted=asked)
    try:
        function(to_builtins(request), Context())  # type: ignore[arg-type]  # one codec for both ways
    finally:
        loop = getattr(function, "_loop")  # noqa: B009 - a function keeps its loop for the next invocation
        loop.close()
        asyncio.set_event_loop(None)
    assert isinstance(seen[0], EncryptedTable) is encrypts
