"""The whole system, every part of it real: what a user does with Kafka and HTTP, and what comes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tenuto_local.system import System
from tests.stack import app, observe
from tests.stack.world import World, app_function, on_the_stack
from tests.support.stack import run

FUNCTION_TIMEOUT_S = 3.0
TOPICS = {
    "amounts": 4,
    "amounts.dead-letter": 1,
    "jobs": 4,
    "jobs.dead-letter": 1,
    "letters": 2,
    "letters.dead-letter": 1,
    app.ECHO_TOPIC: 1,
}
CONFIG = """
[functions.app]

[[subscriptions]]
topic = "amounts"
target = "account/add"

[[subscriptions]]
topic = "jobs"
target = "account/work"

[[subscriptions]]
topic = "letters"
target = "mail/post"
ordering = "none"

# Low enough to be reached by a test.
[limits]
partition_records_max = 200
spill_after_ms = 1000
sweep_interval_ms = 2000
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    notes = tmp_path_factory.mktemp("notes") / "notes"
    function = app_function(notes, FUNCTION_TIMEOUT_S)
    system = System([function], topics=TOPICS, config_text=CONFIG)
    run(system.start(), timeout_s=600.0)  # the first start on a machine fetches the jars
    try:
        yield World(system, notes)
    finally:
        run(system.stop())


# --- Kafka --------------------------------------------------------------------------------------------------------


@on_the_stack
async def test_a_counter_adds_up_every_event_of_its_key(world: World) -> None:
    keys = [world.key("counter") for _ in range(5)]
    await world.produce("amounts", *((key, n) for n in range(1, 41) for key in keys))
    for key in keys:
        await world.eventually(partial(world.state, key), {"total": 820})


@on_the_stack
async def test_a_sleeping_key_keeps_its_queue_and_delays_no_neighbour(world: World) -> None:
    sleeper, neighbour = world.key("sleeper"), world.key("neighbour")
    await world.produce(
        "jobs",
        (sleeper, app.Job("nap", "nap")),
        (sleeper, app.Job("note", "later")),
        (sleeper, app.Job("note", "last")),
        (neighbour, app.Job("note", "done")),
    )
    await world.eventually(lambda: world.notes(sleeper), ["before nap", "after nap", "later", "last"])
    slept_s = world.noted_at(sleeper, "after nap") - world.noted_at(sleeper, "before nap")
    assert slept_s >= app.NAP.total_seconds()
    assert slept_s < app.NAP.total_seconds() + 2
    assert world.noted_at(neighbour, "done") < world.noted_at(sleeper, "after nap")


@on_the_stack
async def test_a_tombstone_reaches_the_handler_as_none(world: World) -> None:
    key = world.key("tombstone")
    await world.produce("amounts", (key, None), (key, 2))
    await world.eventually(lambda: world.state(key), {"tombstones": 1, "total": 2})


@on_the_stack
async def test_all_headers_of_a_record_reach_the_handler(world: World) -> None:
    key = world.key("headers")
    headers = (("keep-headers", b"yes"), ("trace", b"1"), ("trace", b"2"), ("content-type", b"application/json"))
    await world.produce("amounts", (key, 1), headers=headers)
    await world.eventually(
        lambda: world.state(key), {"total": 1, "headers": [[name, value.decode()] for name, value in headers]}
    )


@on_the_stack
async def test_records_without_a_key_each_run_by_themselves(world: World) -> None:
    texts = sorted(world.key("letter") for _ in range(10))
    await world.produce("letters", *((None, text) for text in texts))
    await world.eventually(lambda: sorted(set(world.notes("mail")) & set(texts)), texts)
    assert sorted(text for text in world.notes("mail") if text in texts) == texts


@on_the_stack
async def test_records_nobody_can_handle_leave_for_the_dead_letter_topic(world: World) -> None:
    key = world.key("after-poison")
    poison = [(b"\xff\xfe", 1), (None, 2), (world.key("poison"), b"{not json"), (world.key("poison"), {"no": "number"})]
    await world.produce("amounts", *poison, (key, 3), headers=(("trace", b"x"),), partition=0)
    await world.eventually(lambda: world.state(key), {"total": 3})

    async def reasons() -> list[str]:
        dead = await observe.records(world.system, "amounts.dead-letter", 1)
        for record in dead:
            headers = dict(record.headers)
            assert headers["trace"] == b"x"
            assert headers["tenuto-source-topic"] == b"amounts"
            assert headers["tenuto-source-partition"] == b"0"
        return sorted(dict(record.headers)["tenuto-reason"].decode().split(":")[0] for record in dead)

    expected = [
        'the key is not UTF-8 (invalid start byte); key = "bytes" takes any key',
        'the record has no key; key the producer, or subscribe with key = "json',
        "the input of account/add is not a valid int | None",
        "the input of account/add is not a valid int | None",
    ]
    await world.eventually(reasons, sorted(expected))


@on_the_stack
async def test_a_key_that_always_fails_blocks_itself_alone(world: World) -> None:
    stuck, neighbour = world.key("stuck"), world.key("neighbour")
    later = [(stuck, app.Job("note", "never")) for _ in range(300)]
    await world.produce("jobs", (stuck, app.Job("fail")), *later, partition=1)
    # More events of the stuck key than a partition may hold in memory stand before this one.
    await world.produce("jobs", (neighbour, app.Job("note", "done")), partition=1)
    await world.eventually(lambda: world.notes(neighbour), ["done"])
    assert world.notes(stuck) == []


@on_the_stack
async def test_a_killed_broker_loses_nothing(world: World) -> None:
    keys = [world.key("outage") for _ in range(4)]
    async with world.producer() as producer:
        taken = []
        restart: asyncio.Task[None] | None = None
        for n in range(400):
            if n == 100:
                restart = asyncio.create_task(world.system.stack.broker.restart())
            taken.append(await producer.send("amounts", b"1", key=keys[n % len(keys)].encode()))
            await asyncio.sleep(0.002)
        assert restart is not None
        await restart
        await asyncio.gather(*taken)
    for key in keys:
        await world.eventually(partial(world.state, key), {"total": 100}, within_s=40.0)


# --- functions that end badly -------------------------------------------------------------------------------------


@on_the_stack
async def test_a_function_that_dies_in_a_step_goes_on_at_that_step(world: World) -> None:
    key = world.key("crash")
    await world.produce("jobs", (key, app.Job("crash")), (key, app.Job("note", "next")))
    await world.eventually(lambda: world.notes(key), ["one", "two", "two", "three", "next"])


@on_the_stack
async def test_a_function_that_blocks_is_ended_by_its_timeout_and_tried_again(world: World) -> None:
    key = world.key("hang")
    await world.produce("jobs", (key, app.Job("hang")))
    await world.eventually(lambda: world.notes(key), ["hanging", "went on"])
    assert world.noted_at(key, "went on") - world.noted_at(key, "hanging") >= FUNCTION_TIMEOUT_S - 0.5


@on_the_stack
async def test_every_function_process_killed_at_once_is_replaced(world: World) -> None:
    key = world.key("killed")
    await world.produce("jobs", *((key, app.Job("note", str(n))) for n in range(20)))
    await world.eventually(lambda: len(world.notes(key)) >= 2, expected=True)
    for pid in await world.system.stack.worker_pids("app"):
        os.kill(pid, signal.SIGKILL)
    await world.eventually(lambda: sorted(set(world.notes(key)), key=int), [str(n) for n in range(20)])
    assert len(world.notes(key)) <= 21, "only the step in flight may come again"


# --- messages -----------------------------------------------------------------------------------------------------


@on_the_stack
async def test_a_delayed_message_arrives_late_and_once(world: World) -> None:
    sender, receiver = world.key("sender"), world.key("receiver")
    sent_s = time.monotonic()
    await world.produce("jobs", (sender, app.Job("tell", receiver)))
    await world.eventually(lambda: world.state(receiver), {"total": 5})
    assert time.monotonic() - sent_s >= app.NAP.total_seconds()
    await asyncio.sleep(0.5)
    assert await world.state(receiver) == {"total": 5}


@on_the_stack
async def test_an_awakeable_is_resolved_over_http(world: World) -> None:
    key = world.key("waits")
    await world.produce("jobs", (key, app.Job("wait")))
    await world.eventually(lambda: len(world.notes(key)), 1)
    (identity,) = world.notes(key)
    assert (await world.post(f"/awakeables/{identity}/resolve", "from http")).status == 202
    await world.eventually(lambda: world.state(key), {"answer": "from http"})
    assert (await world.post(f"/awakeables/{identity}/resolve", "again")).status == 404
    assert await world.state(key) == {"answer": "from http"}


@on_the_stack
async def test_an_awakeable_is_resolved_by_another_handler(world: World) -> None:
    key, other = world.key("waits"), world.key("answers")
    await world.produce("jobs", (key, app.Job("wait")))
    await world.eventually(lambda: len(world.notes(key)), 1)
    (identity,) = world.notes(key)
    assert (await world.post(f"/call/account/{other}/answer", identity)).status == 204
    await world.eventually(lambda: world.state(key), {"answer": f"from {other}"})


@on_the_stack
async def test_a_handler_publishes_to_a_topic(world: World) -> None:
    key = world.key("echo")
    await world.produce("jobs", (key, app.Job("echo", "hello")))

    async def echoes() -> list[tuple[bytes | None, bytes]]:
        records = await observe.records(world.system, app.ECHO_TOPIC, 1)
        mine = [record for record in records if record.key == key.encode()]
        return [(record.value, dict(record.headers)["origin"]) for record in mine]

    await world.eventually(echoes, [(b'{"text":"hello"}', b"account")])


# --- HTTP ---------------------------------------------------------------------------------------------------------


@on_the_stack
async def test_kafka_and_http_meet_in_one_object(world: World) -> None:
    key = world.key("both")
    await world.produce("amounts", (key, 40))
    await world.eventually(lambda: world.state(key), {"total": 40})
    answer = await world.post(f"/call/account/{key}/add", 2)
    assert (answer.status, answer.body) == (200, 42)
    assert await world.state(key) == {"total": 42}


@on_the_stack
async def test_a_terminal_error_has_its_status_and_metadata(world: World) -> None:
    key = world.key("refused")
    answer = await world.post(f"/call/account/{key}/work", app.Job("refuse", "no credit"))
    assert answer.status == 409
    assert answer.body == {"error": {"message": "no credit", "metadata": {"account": key}}}
    assert (await world.post(f"/call/account/{key}/add", 1)).body == 1


@pytest.mark.parametrize(
    ("path", "value", "status"),
    [
        ("/call/account/k/add", b"{not json", 400),
        ("/call/account/k/add", {"no": "number"}, 400),
        ("/call/account/k/work", app.Job("dance"), 400),
        ("/call/account/add", 1, 400),
        ("/call/mail/k/post", "x", 400),
        ("/call/account/k/none", 1, 404),
        ("/call/nobody/k/add", 1, 404),
        ("/send/account/k/show", None, 400),
        ("/send/account/k/add?delay=soon", 1, 400),
        ("/call/account/k/add?delay=5s", 1, 400),
        ("/awakeables/nonsense/resolve", 1, 400),
        ("/nowhere", 1, 404),
    ],
)
@pytest.mark.stack
def test_a_bad_request_is_told_why(world: World, path: str, value: object, status: int) -> None:
    answer = run(world.post(path, value))
    assert answer.status == status, answer
    assert answer.body["error"]["message"]


@on_the_stack
async def test_calls_with_one_idempotency_key_are_one_call(world: World) -> None:
    key = world.key("once")
    path, headers = f"/call/account/{key}/add", {"idempotency_key": "the-one"}
    answers = await asyncio.gather(*(world.post(path, 5, **headers) for _ in range(5)))
    answers.append(await world.post(path, 5, **headers))
    assert [(answer.status, answer.body) for answer in answers] == [(200, 5)] * 6
    assert await world.state(key) == {"total": 5}


@on_the_stack
async def test_a_send_is_accepted_at_once_and_runs_after_its_delay(world: World) -> None:
    key = world.key("later")
    sent_s = time.monotonic()
    answer = await world.post(f"/send/account/{key}/add?delay=1s", 7)
    assert (answer.status, answer.body["status"]) == (202, "accepted")
    assert time.monotonic() - sent_s < 1
    await world.eventually(lambda: world.state(key), {"total": 7})
    assert time.monotonic() - sent_s >= 1


@on_the_stack
async def test_a_long_call_gives_an_id_to_attach_to(world: World) -> None:
    key = world.key("long")
    headers = {"idempotency_key": "long", "prefer": "wait=0"}
    answer = await world.post(f"/call/account/{key}/work", app.Job("nap", "nap"), **headers)
    assert (answer.status, answer.body["status"]) == (202, "pending")
    invocation = answer.body["invocation_id"]
    assert (await world.get(f"/invocations/{invocation}/output")).status == 202
    attached = await world.get(answer.headers["location"])
    assert (attached.status, attached.body) == (200, "nap")
    assert (await world.get(f"/invocations/{invocation}/output")).body == "nap"
    assert world.notes(key) == ["before nap", "after nap"]


@on_the_stack
async def test_a_call_joins_the_delayed_message_of_its_idempotency_key(world: World) -> None:
    key = world.key("joined")
    sent_s = time.monotonic()
    sent = await world.post(f"/send/account/{key}/add?delay=3s", 7, idempotency_key="one")
    early = await world.post(f"/call/account/{key}/add", 100, idempotency_key="one", prefer="wait=1")
    again = await world.post(f"/send/account/{key}/add?delay=1s", 1_000, idempotency_key="one")
    assert (sent.status, early.status, again.status) == (202, 202, 202)
    assert len({one.body["invocation_id"] for one in (sent, early, again)}) == 1
    called = await world.post(f"/call/account/{key}/add", 100, idempotency_key="one")
    assert (called.status, called.body) == (200, 7)
    assert time.monotonic() - sent_s >= 3
    assert await world.state(key) == {"total": 7}


@on_the_stack
async def test_a_call_that_outlasts_its_wait_runs_on_and_once(world: World) -> None:
    key = world.key("musing")
    called_s = time.monotonic()
    answer = await world.post(f"/call/account/{key}/work", app.Job("muse", ""), prefer="wait=1")
    assert (answer.status, answer.body["status"]) == (202, "pending")
    assert time.monotonic() - called_s < 2.5
    attached = await world.get(answer.headers["location"])
    assert (attached.status, attached.body) == (200, "muse")
    assert world.notes(key) == ["musing"]
    assert await world.state(key) == {"mused": True}


@on_the_stack
async def test_a_service_answers_without_a_key(world: World) -> None:
    text = world.key("letter")
    answer = await world.post("/call/mail/post", text, idempotency_key=text)
    again = await world.post("/call/mail/post", text, idempotency_key=text)
    assert (answer.status, answer.body, again.body) == (200, text, text)
    assert world.notes("mail").count(text) == 1
