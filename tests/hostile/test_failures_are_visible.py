"""Every accepted piece of work ends as done, waiting, or kept with its reason; and each of these can be seen.

Owns that rule for the control plane: a line, a count and a record for every end that is none. Does not own what a
function's own log says (`tests/sdk/test_logs`), nor that lines hold no payload (`test_no_payload_in_logs`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tenuto import InvocationRetryPolicy, ObjectContext, Service, TerminalError, VirtualObject
from tenuto.context import Context
from tenuto.lane.dead_letters import (
    LETTER_SHARDS,
    dead_letter,
    ends_unseen,
    is_dead_letter,
    letter_key,
    letter_put,
    message_letter_id,
)
from tenuto.lane.head import head_key
from tenuto.lane.timers import GuardTimer, SendTimer, timer_put
from tenuto.lane.transitions import inbox_put, mark_pend
from tenuto.lane.writes import Put, Refused, Update, Write
from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.messages import EventResult, Fenced, Rejected, Speculated, Stopped, encode
from tenuto.protocol.records import (
    BuriedOut,
    CallSource,
    Event,
    Failed,
    Failure,
    KafkaSource,
    MessageSource,
    Out,
    PublishOut,
    ResultOut,
    SendOut,
    Success,
)
from tenuto.service import Services
from tenuto.store.port import TableRefusedError
from tenuto_control.admin.dead_letters import NoSuchLetterError, RedriveUncertainError
from tenuto_control.core.log_fields import SHOWN_CHARACTERS_MAX
from tenuto_control.limits import Limits
from tenuto_control.ports import FunctionFailedError, LogUnavailableError, Pending
from tests.hostile.world import DEAD, HostileWorld
from tests.support.virtual_time import run_virtual

ONCE = InvocationRetryPolicy(initial_interval=timedelta(milliseconds=10), max_attempts=1)
THRICE = InvocationRetryPolicy(initial_interval=timedelta(milliseconds=10), max_attempts=3)
LARGE = 300_000


class Cargo(msgspec.Struct):
    """What handlers are sent."""

    act: str = "well"
    ballast: str = ""


class Shop:
    """Handlers that end in every way; `broken` is whether they do so today, `ran` what was done."""

    def __init__(self) -> None:
        self.broken = True
        self.ran: list[str] = []
        self.box = VirtualObject("box")
        self.plain = Service("plain")
        self.box.handler("act", retry_policy=THRICE)(self._act)
        self.box.handler("tell", retry_policy=ONCE)(self._tell)
        self.box.handler("publish", retry_policy=ONCE)(self._publish)
        self.plain.handler("act", retry_policy=THRICE)(self._plain)
        self.act, self.tell = self.box.handlers["act"], self.box.handlers["tell"]
        self.publish, self.plain_act = self.box.handlers["publish"], self.plain.handlers["act"]

    async def _act(self, ctx: ObjectContext, cargo: Cargo) -> None:
        await self._end(ctx, cargo)

    async def _plain(self, ctx: Context, cargo: Cargo) -> None:
        await self._end(ctx, cargo)

    async def _end(self, ctx: Any, cargo: Cargo) -> None:
        if cargo.act.startswith("durably"):
            await ctx.run("step", int)
        if cargo.act.startswith("asleep"):
            await ctx.run("step", int)
            await ctx.sleep(timedelta(seconds=30))
        if self.broken:
            if cargo.act.endswith("terminal"):
                raise TerminalError("no such thing", 409)
            if cargo.act.endswith("fails"):
                raise RuntimeError("no luck")
        self.ran.append(cargo.act)

    async def _tell(self, ctx: ObjectContext, cargo: Cargo) -> None:
        ctx.object_send(self.act, "other", cargo)
        ctx.service_send(self.plain_act, cargo)

    async def _publish(self, ctx: ObjectContext, topic: str) -> None:
        ctx.publish(topic, b"value", key=b"key")
        ctx.set("published", topic)
        self.ran.append(topic)


def cargo(act: str, size: int = 0) -> bytes:
    """An input."""
    return msgspec.json.encode(Cargo(act, "x" * size))


def play(scenario: Coroutine[Any, Any, None]) -> None:
    """On virtual time."""
    run_virtual(scenario)


def world_of(shop: Shop, **limits: Any) -> HostileWorld:
    """What runs a shop."""
    return HostileWorld(Services([shop.box, shop.plain]), limits=Limits(**limits))


# --- messages that end unseen -----------------------------------------------------------------------------------------

ENDS = ("terminal", "fails", "durably terminal", "durably fails", "asleep terminal", "asleep fails")
REASONS = {"terminal": ("no such thing", 409), "fails": ("RuntimeError: no luck", 500)}


@pytest.mark.parametrize("size", [0, 3_000, 90_000])
@pytest.mark.parametrize("act", ENDS)
def test_a_message_of_a_handler_that_ends_in_failure_is_kept_with_its_history(
    act: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        world.record(shop.tell, "k", cargo(act, size // 2))
        await asyncio.sleep(120)
        assert world.released == [0]
        letters = {letter.lane.partition("/")[0]: letter for letter in world.letters()}
        assert set(letters) == {"box", "plain"}
        reason, status = REASONS[act.rpartition(" ")[2]]
        for letter in letters.values():
            assert (letter.kind, letter.reason, letter.status_code, letter.handler) == (
                "message",
                reason,
                status,
                "act",
            )
            assert letter.origin.startswith("a message of box/k#")
            assert letter.attempts >= (3 if act == "fails" else 1)
            assert 0 < letter.first_ms <= letter.at_ms <= world.clock.now_ms()
            _, event = await world.office.read(letter.id)
            assert isinstance(event, Event)
            assert event.input == cargo(act, size // 2)
        counts = world.tally.take().counts
        assert counts["DeadLetters"] == 2
        assert "TerminalErrors" not in counts
        assert {pk for pk, sk in world.table.items if sk.startswith("V#")} == set()

    with caplog.at_level(logging.WARNING, "tenuto"):
        play(scenario())
    lines = [line for line in caplog.messages if "kept as dead letter" in line]
    assert len(lines) == 2
    assert any(line.startswith("box/other: act ended as failed (") for line in lines)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("size", [0, 3_000, LARGE, 349_000])
@pytest.mark.parametrize("bad", ["terminal", "fails", "durably fails", "no cargo", "crash"])
def test_a_send_over_http_that_ends_in_failure_is_kept(bad: str, size: int, keep: bool) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        value = b"{" + b" " * size + b'"act": 1}' if bad == "no cargo" else cargo(bad, size)
        if bad == "crash":
            world.answers.extend([FunctionFailedError("it exited")] * 3)
        for handler, key in ((shop.act, "k"), (shop.plain_act, "")):
            if bad == "crash":
                world.answers.extend([FunctionFailedError("it exited")] * 3)
            invocation = await world.send(handler, key, value, keep=keep)
            await asyncio.sleep(60)
            (letter,) = [found for found in world.letters() if found.invocation == invocation]
            got, event = await world.office.read(letter.id)
            assert isinstance(event, Event)
            assert (event.input, event.headers, got.origin) == (value, (("h", b"1"),), "HTTP")
            assert got.size == len(value)
            answer = await world.dispatcher.result(invocation, 0)
            # One that claimed its lane keeps its result in any case.
            assert isinstance(answer, Failed) or not keep
        # Nothing that is large stays in a head, and no part that nobody names.
        assert not [sk for _, sk in world.table.items if sk.startswith(("V#", "P#")) and not _named(world, sk)]

    play(scenario())


def _named(world: HostileWorld, sk: str) -> bool:
    return any(letter.parts > int(sk.rpartition("#")[2]) for letter in world.letters() if sk.startswith("P#"))


def test_a_call_whose_caller_is_told_leaves_no_dead_letter_and_no_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        for number, act in enumerate(("terminal", "durably terminal")):
            event = replace_input(world.event_of_call(shop.act, "k", f"c{number}"), cargo(act))
            assert await world.dispatcher.call(event, 5_000) == Failed(Failure("no such thing", 409))
        event = replace_input(world.event_of_call(shop.act, "k", "c9"), cargo("asleep terminal"))
        assert await world.dispatcher.call(event, 100) == Pending()
        await asyncio.sleep(60)
        assert await world.dispatcher.result(event.id, 0) == Failed(Failure("no such thing", 409))
        assert world.letters() == []
        assert not world.tally.take().counts.keys() & {"DeadLetters", "TerminalErrors"}

    with caplog.at_level(logging.WARNING, "tenuto"):
        play(scenario())
    assert told_by_the_control_plane(caplog) == []


def told_by_the_control_plane(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Its lines; functions have a log of their own, with the causes and the places in the handlers' code."""
    return [record.getMessage() for record in caplog.records if record.name != "tenuto.handler"]


def replace_input(event: Event, value: bytes) -> Event:
    """The same call with another input."""
    return Event(event.id, event.handler, event.source, value)


def test_an_event_of_kafka_that_ends_by_a_terminal_error_leaves_a_line_and_a_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        for act in ("terminal", "durably terminal", "asleep terminal"):
            world.record(shop.act, "k", cargo(act))
        await asyncio.sleep(60)
        assert world.released == [0, 1, 2]
        assert world.kafka.records(DEAD) == []
        assert world.tally.take().counts["TerminalErrors"] == 3

    with caplog.at_level(logging.WARNING, "tenuto.lane"):
        play(scenario())
    assert told_by_the_control_plane(caplog) == [
        f"box/k: act ended t/0 offset {n} by a terminal error (409): no such thing" for n in range(3)
    ]
    assert {getattr(record, "key", None) for record in caplog.records} == {"k"}


def test_a_record_that_goes_to_its_dead_letter_topic_leaves_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        for value in (cargo("durably fails"), b"\xff", b"[" * 3_000, cargo("fails", 5_000)):
            world.record(shop.act, "k", value)
            await asyncio.sleep(60)
        assert [dict(r.headers)["tenuto-handler"] for r in world.kafka.records(DEAD)] == [b"box/act"] * 4
        assert world.tally.take().counts["DeadLetters"] == 4

    with caplog.at_level(logging.ERROR, "tenuto"):
        play(scenario())
    told = [line for line in caplog.messages if line.startswith("box/k: the record t/0 offset ")]
    assert len(told) == 4
    assert all(f'for box/act ended as failed and is in "{DEAD}": ' in line for line in told)


@pytest.mark.parametrize("text", ["x" * 100_000, "a\nERROR forged\r\n\x1b[31m", "caf\udce9"])
def test_a_reason_of_any_text_is_kept_and_is_one_short_line(text: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        result = Failed(Failure(text.encode(errors="replace").decode(), 400))
        invocation = str(InvocationId(Lane("box", "k"), "c1"))
        world.answers.append(encode(Speculated((EventResult(invocation, result),))))
        await world.send(shop.act, "k", cargo("well"))
        await asyncio.sleep(10)
        (letter,) = world.letters()
        assert letter.status_code == 400

    with caplog.at_level(logging.ERROR, "tenuto"):
        play(scenario())
    (line,) = caplog.messages
    assert len(line) < SHOWN_CHARACTERS_MAX + 200
    assert line.isprintable()


# --- dead letters of the table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, LARGE])
@pytest.mark.parametrize("way", ["object", "service"])
def test_a_dead_letter_is_run_again_once_however_often_it_is_asked_for(way: str, size: int) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        handler, key = (shop.act, "k") if way == "object" else (shop.plain_act, "")
        first = await world.send(handler, key, cargo("durably fails", size))
        await asyncio.sleep(30)
        (letter,) = await world.office.listed()
        shop.broken = False
        again = ""
        # The redrive breaks off behind each of its writes, and is asked for again.
        for broken in range(12):
            writes = [broken]

            def refuse(_write: Write, writes: list[int] = writes) -> Exception | None:
                writes[0] -= 1
                return TableRefusedError("no") if writes[0] < 0 else None

            world.table.refuse = refuse
            try:
                again = await world.office.redrive(letter.id)
            except TableRefusedError:
                continue
            finally:
                world.table.refuse = lambda _write: None
            break
        assert again not in ("", first)
        with pytest.raises(NoSuchLetterError):
            await world.office.redrive(letter.id)
        sweeping = asyncio.create_task(world.sweeper.run())
        await asyncio.sleep(120)
        sweeping.cancel()
        assert shop.ran == ["durably fails"]
        assert await world.office.listed() == []
        assert not [sk for _, sk in world.table.items if sk.startswith("P#")]

    play(scenario())


def test_what_was_dealt_with_does_not_come_back_by_a_late_duplicate() -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        await world.send(shop.act, "k", cargo("fails"))
        await asyncio.sleep(30)
        (letter,) = world.letters()
        put = letter_put(letter)
        assert isinstance(await world.table.write(put), Refused)
        await world.office.discard(letter.id)
        assert isinstance(await world.table.write(put), Refused)
        assert await world.office.listed() == []

    play(scenario())


def test_a_redriven_message_that_fails_again_is_a_dead_letter_again() -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        await world.send(shop.act, "k", cargo("fails"))
        sweeping = asyncio.create_task(world.sweeper.run())
        seen = []
        for _ in range(3):
            await asyncio.sleep(60)
            (letter,) = await world.office.listed()
            seen.append(await world.office.redrive(letter.id))
        sweeping.cancel()
        assert len(set(seen)) == 3

    play(scenario())


def test_a_redrive_that_broke_off_long_ago_is_not_repeated() -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        await world.send(shop.act, "k", cargo("fails"))
        await asyncio.sleep(30)
        (letter,) = await world.office.listed()
        world.table.refuse = lambda write: (
            TableRefusedError("no") if "done" in getattr(write, "attributes", {}) else None
        )
        with pytest.raises(TableRefusedError):
            await world.office.redrive(letter.id)
        world.table.refuse = lambda _write: None
        await asyncio.sleep(2 * 86_400)
        with pytest.raises(RedriveUncertainError, match="did not end"):
            await world.office.redrive(letter.id)
        await world.office.discard(letter.id)

    play(scenario())


def test_listing_reads_its_own_partitions_alone_and_finds_all_of_them() -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        for number in range(150):
            await world.send(shop.act, f"k{number % 7}", cargo("fails", 3_000), nonce=f"c{number}")
        await asyncio.sleep(300)
        world.table.requests.clear()
        listed = await world.office.listed()
        assert len(listed) == 150
        assert [letter.at_ms for letter in listed] == sorted(letter.at_ms for letter in listed)
        assert set(world.table.requests) == {"query"}
        assert world.table.requests["query"] <= 2 * LETTER_SHARDS
        assert len(await world.office.listed("box/k3")) == len(range(3, 150, 7))

    play(scenario())


def test_a_letter_of_an_event_has_one_name_whoever_puts_it() -> None:
    names = {letter_key(message_letter_id(str(InvocationId(Lane("box", "k"), f"c{n}")))).pk for n in range(300)}
    assert len(names) == LETTER_SHARDS


# --- records that no topic takes --------------------------------------------------------------------------------------

IMPOSSIBLE = ("a topic", "", ".", "..", "t/x", "ü", "x" * 250, "a\nb", "#")


@pytest.mark.parametrize("topic", IMPOSSIBLE)
def test_a_record_for_a_topic_that_cannot_be_is_set_aside_at_once(topic: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        # The function may be of an older version, which refuses no name.
        offset_event = str(InvocationId(Lane("box", "k"), kafka_nonce("0", "t", 0, 0)))
        out: tuple[Out, ...] = (PublishOut(topic, b"value", b"key"),)
        world.answers.append(encode(Speculated((EventResult(offset_event, Success()),), {"s": b"1"}, out)))
        world.record(shop.act, "k", cargo("well"))
        await asyncio.sleep(2)
        assert world.released == [0]
        (letter,) = world.letters()
        _, record = await world.office.read(letter.id)
        assert record == PublishOut(topic, b"value", b"key")
        assert world.tally.take().counts["RecordsRefused"] == 1

    with caplog.at_level(logging.ERROR, "tenuto"):
        play(scenario())
    (line,) = caplog.messages
    assert "was not produced and is kept as dead letter" in line
    assert line.isprintable()


def test_a_topic_that_is_created_in_time_gets_its_records_in_order(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        for _ in range(3):
            world.record(shop.publish, "k", b'"soon"')
        await asyncio.sleep(40)
        assert world.released == []
        assert world.tally.take().counts["ProduceRetries"] > 3
        world.kafka.create_topic("soon")
        await asyncio.sleep(10)
        assert world.released == [0, 1, 2]
        assert len(world.kafka.records("soon")) == 3
        assert world.letters() == []

    with caplog.at_level(logging.INFO, "tenuto"):
        play(scenario())
    about = [line for line in caplog.messages if '"soon"' in line]
    assert len(about) == 2
    assert about[0].startswith('topic "soon" does not exist; create it; records for it wait for up to 60 s, then they')
    assert about[1] == 'topic "soon" accepts records now'


def test_a_topic_that_nobody_creates_holds_its_keys_for_a_bounded_time(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop, topic_patience_ms=20_000)
        for number in range(40):
            world.record(shop.publish, f"k{number % 4}", b'"never"')
        world.record(shop.act, "k0", cargo("well"))
        await asyncio.sleep(15)
        assert world.released == []
        await asyncio.sleep(30)
        # Not for as long again for each record.
        assert sorted(world.released) == list(range(41))
        letters = await world.office.listed()
        assert len(letters) == 40
        assert {letter.topic for letter in letters} == {"never"}
        # Someone makes the topic, and has them produced.
        world.kafka.create_topic("never")
        for letter in letters:
            await world.office.redrive(letter.id)
        assert len({dict(record.headers)["tenuto-id"] for record in world.kafka.records("never")}) == 40
        assert await world.office.listed() == []

    with caplog.at_level(logging.WARNING, "tenuto"):
        play(scenario())
    about = [line for line in caplog.messages if "records for it wait" in line]
    assert len(about) == 2
    assert "records for it wait no longer" in about[1]


def test_a_broker_that_is_away_is_waited_for_without_bound() -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        world.kafka.create_topic("out")
        away = [True]

        async def hook(operation: Any) -> None:
            if operation.name == "produce" and away[0]:
                raise LogUnavailableError("no broker")

        world.kafka.hook = hook
        world.record(shop.publish, "k", b'"out"')
        await asyncio.sleep(3_600)
        assert (world.released, world.letters()) == ([], [])
        away[0] = False
        await asyncio.sleep(10)
        assert world.released == [0]

    play(scenario())


@pytest.mark.parametrize(
    ("act", "size"),
    [("fails", 0), ("fails", 5_000), ("fails", 900_000), ("durably fails", 0), ("durably fails", LARGE)],
)
def test_a_dead_letter_whose_topic_is_missing_is_kept_whole(act: str, size: int) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        world.kafka.delete_topic(DEAD)
        for number in range(3):
            world.record(shop.act, "k", cargo(act, size), headers=(("n", b"%d" % number),), raw_key=b"raw")
        await asyncio.sleep(400)
        assert sorted(world.released) == [0, 1, 2]
        numbers = set()
        for letter in await world.office.listed():
            _, record = await world.office.read(letter.id)
            assert isinstance(record, PublishOut)
            assert (record.value, record.key, record.topic) == (cargo(act, size), b"raw", DEAD)
            numbers.add(record.headers[0])
        assert numbers == {("n", b"%d" % number) for number in range(3)}

    play(scenario())


# --- a table that is away, or refuses ---------------------------------------------------------------------------------


class Listening(logging.Handler):
    """Hands each line on."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self._hear(record.getMessage())


@pytest.mark.parametrize("silent_s", [0.0, 10.0], ids=["fails at once", "is silent"])
def test_a_table_that_does_not_answer_is_told_of_once_for_the_process(
    silent_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[tuple[float, str]] = []

    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        sweeping = asyncio.create_task(world.sweeper.run())
        loop = asyncio.get_running_loop()
        handler = Listening(lambda text: said.append((loop.time(), text)))
        logging.getLogger("tenuto").addHandler(handler)
        try:
            await asyncio.sleep(20)
            gone_s = loop.time()
            world.table.away, world.table.silent_s = True, silent_s
            for number in range(20):
                world.record(shop.act, f"k{number}", cargo("well"))
            await asyncio.sleep(100)
            world.table.away = False
            back_s = loop.time()
            await asyncio.sleep(30)
        finally:
            logging.getLogger("tenuto").removeHandler(handler)
        sweeping.cancel()
        assert len(shop.ran) == 20
        *away, back = said
        assert all(line.startswith("the table has not answered for ") for _, line in away)
        at = [time - gone_s for time, _ in away]
        assert 2 <= at[0] <= 2.6
        assert 3 <= len(at) <= 7
        pauses = [later - sooner for sooner, later in itertools.pairwise(at)]
        assert pauses == sorted(pauses)
        assert back[1].startswith("the table answers again, after 10")
        assert back[0] - back_s < 15

    with caplog.at_level(logging.INFO, "tenuto"):
        play(scenario())


def test_a_short_trouble_of_the_table_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        for number in range(10):
            world.table.away = True
            world.record(shop.act, f"k{number}", cargo("well"))
            await asyncio.sleep(1.2)
            world.table.away = False
            await asyncio.sleep(5)
        assert len(shop.ran) == 10

    with caplog.at_level(logging.INFO, "tenuto"):
        play(scenario())
    assert told_by_the_control_plane(caplog) == []


def test_a_refused_write_is_counted_and_told_less_and_less(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        world.table.refuse = lambda write: TableRefusedError("AccessDenied") if write.key.pk == "box/k" else None
        world.record(shop.act, "k", cargo("well"))
        world.record(shop.act, "other", cargo("well"))
        await asyncio.sleep(3_600)
        # A permission that is missing is no fault of the event: it waits.
        assert world.released == [1]
        assert world.letters() == []
        refused = world.tally.take().counts["WritesRefused"]
        assert 10 < refused < 150
        world.table.refuse = lambda _write: None
        await asyncio.sleep(70)
        assert world.released == [1, 0]

    with caplog.at_level(logging.ERROR, "tenuto"):
        play(scenario())
    assert 3 <= len(caplog.messages) <= 8
    assert all("box/k: the table refuses a write: AccessDenied" in line for line in caplog.messages)


# --- functions that answer nonsense -----------------------------------------------------------------------------------

EVENT_ID = str(InvocationId(Lane("box", "k"), kafka_nonce("0", "t", 0, 0)))
OTHER_ID = str(InvocationId(Lane("box", "other"), "n1"))
FINE = EventResult(EVENT_ID, Success())


def _sent(**changes: Any) -> tuple[Out, ...]:
    whole = SendOut("box", "other", OTHER_ID, "act", b"1")
    return (msgspec.structs.replace(whole, **changes),)


NONSENSE: dict[str, bytes] = {
    "bytes": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "surrogate": b'{"type": "speculated", "results": ["\\ud800"]}',
    "number": b"1e999",
    "empty": b"",
    "manifest of nothing": b'{"type": "manifest", "services": 1}',
    "no result": encode(Speculated(())),
    "effects of nothing": encode(Speculated((), {"s": b"1"})),
    "another event": encode(Speculated((EventResult(OTHER_ID, Success()),))),
    "twice": encode(Speculated((FINE, FINE))),
    "id": encode(Speculated((FINE,), {}, _sent(event_id="garbage"))),
    "lane": encode(Speculated((FINE,), {}, _sent(key="third"))),
    "key": encode(
        Speculated((FINE,), {}, _sent(key="k" * 2_049, event_id=str(InvocationId(Lane("box", "k" * 2_049), "n"))))
    ),
    "foreign result": encode(Speculated((FINE,), {}, (ResultOut(OTHER_ID, Success()),))),
    "foreign dead letter": encode(
        Speculated((FINE,), {}, (BuriedOut(Event(OTHER_ID, "act", MessageSource("box/x", "1")), "no"),))
    ),
    "state name": encode(Speculated((FINE,), {"n" * 70_000: b"1"})),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_answer_that_cannot_be_is_a_failed_attempt(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        world.answers.append(NONSENSE[name])
        world.record(shop.act, "k", cargo("well"))
        await asyncio.sleep(10)
        assert (shop.ran, world.released) == (["well"], [0])
        # Once more it is the third failure of the next event, which ends it.
        world.answers.extend([NONSENSE[name].replace(b"\x00", b"")] * 3)
        world.record(shop.act, "k", cargo("well"))
        world.record(shop.act, "k", cargo("well"))
        await asyncio.sleep(60)
        assert 2 in world.released
        assert len(world.payloads) < 20
        assert not [pk for pk, _ in world.table.items if pk.startswith("box/") and pk != "box/k"]

    with caplog.at_level(logging.WARNING, "tenuto"):
        play(scenario())
    assert any("attempt at act failed: f answered " in line for line in caplog.messages)


@pytest.mark.parametrize(
    "answer",
    [
        Fenced("no reason"),
        Speculated((), stopped=Stopped(EVENT_ID, Failure("no"), 0)),
        Speculated((), stopped=Stopped(EVENT_ID, Failure("no"), -5_000)),
        Speculated((), stopped=Stopped(EVENT_ID, Failure("no"))),
        Speculated(()),
        Rejected(Failure("no", 404)),
    ],
    ids=["fenced", "no pause", "a pause in the past", "no word of a pause", "nothing", "rejected"],
)
def test_no_answer_makes_a_hot_loop(answer: Any) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        world.instead = lambda _payload: encode(answer)
        world.record(shop.act, "k", cargo("well"))
        await asyncio.sleep(60)
        assert len(world.payloads) < 40

    play(scenario())


def test_a_failure_text_of_megabytes_makes_no_such_line(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        much = Failure("x" * 3_000_000)
        world.answers.extend([encode(Speculated((), stopped=Stopped(EVENT_ID, much))), encode(Rejected(much))])
        world.record(shop.act, "k", cargo("well"))
        await asyncio.sleep(60)
        assert shop.ran == ["well"]

    with caplog.at_level(logging.DEBUG, "tenuto"):
        play(scenario())
    assert len(caplog.messages) == 2
    assert max(map(len, caplog.messages)) < SHOWN_CHARACTERS_MAX + 200


# --- the sweep --------------------------------------------------------------------------------------------------------


def test_no_item_keeps_the_sweep_from_the_timers_behind_it() -> None:
    async def scenario() -> None:
        shop = Shop()
        world = world_of(shop)
        now = world.clock.now_ms()
        bad: dict[str, list[Any]] = {
            "ver": [Update(head_key(Lane("box", "ver")), {"ver": "text"})],
            "out": [Update(head_key(Lane("box", "out")), {"o.1": b"\x81\xa4type\xa4what"})],
            "deep": [Update(head_key(Lane("box", "deep")), {"o.1": b"\x91" * 100_000})],
            "run": [Update(head_key(Lane("box", "run")), {"run": b"\x91", "rid": "x"})],
        }
        for key, writes in bad.items():
            for write in writes:
                await world.table.write(write)
            await world.table.write(timer_put(GuardTimer(Lane("box", key), "n", now - 1_000, "a")))
        await world.table.write(timer_put(GuardTimer(Lane("box", "z" * 3_000), "n", now - 1_000, "a")))
        for message in (b"\x91" * 100_000, b"", b"\xff"):
            timer = SendTimer(Lane("box", f"m{len(message)}"), "n", now - 900, "a", message, "http", "0")
            await world.table.write(timer_put(timer))
        odd = timer_put(GuardTimer(Lane("box", "odd"), "n", now - 800, "a"))
        await world.table.write(Put(odd.key, {"due": "soon", "kind": "odd"}))
        lane = Lane("box", "victim")
        event = Event(str(InvocationId(lane, "c7")), "act", CallSource(one_way=True), cargo("well"))
        await world.table.write(inbox_put(lane, event))
        await world.table.write(mark_pend(lane, "mark"))
        await world.table.write(timer_put(GuardTimer(lane, "c7", now - 1, "zz")))
        sweeping = asyncio.create_task(world.sweeper.run())
        await asyncio.sleep(600)
        assert not sweeping.done()
        sweeping.cancel()
        assert shop.ran == ["well"]

    play(scenario())


# --- which events have a dead letter ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        (CallSource(), True),
        (CallSource(keep_result=True), True),
        (CallSource(one_way=True), False),
        (CallSource(keep_result=True, one_way=True), False),
        (MessageSource("box/x", "1"), False),
        (KafkaSource("0", "t", 0, 0, 0), False),
        (KafkaSource("0", "t", 0, 0, 0, dead_letter=DEAD), False),
    ],
)
def test_what_nobody_waits_for_has_a_dead_letter(source: Any, *, seen: bool) -> None:
    event = Event(EVENT_ID, "act", source, b"1")
    letter = dead_letter(event, "why")
    assert (letter is None) == seen
    assert letter is None or is_dead_letter(letter)
    unseen = ends_unseen(event, Failed(Failure("why")))
    assert (unseen is None) == (seen or isinstance(source, KafkaSource))
    assert ends_unseen(event, Success()) is None
    if isinstance(unseen, BuriedOut):
        assert unseen.event == event
