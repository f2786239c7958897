"""Each event shape of AWS: what is read from it, what is answered, and that no shape is taken for another.

Owns samples in the form of AWS's own documentation. Does not own what an event leads to.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tenuto.errors import ProtocolError
from tenuto.hosts import activation, api_gateway, event_scheduler, kafka_event_source
from tenuto.hosts.kafka_event_source import SourceRecord
from tenuto.lane.writes import Key
from tenuto.protocol.ids import Lane
from tenuto.protocol.messages import Discover, encode
from tenuto_control.loops.serverless import HANDED_ON_TOGETHER

MSK_BATCH: dict[str, Any] = {
    "eventSource": "aws:kafka",
    "eventSourceArn": "arn:aws:kafka:us-east-1:123456789012:cluster/demo/751d2973-a626-431c-9d4e-d7975eb44dd7-2",
    "bootstrapServers": "b-2.demo-cluster-1.a1bcde.c1.kafka.us-east-1.amazonaws.com:9092",
    "records": {
        "mytopic-0": [
            {
                "topic": "mytopic",
                "partition": 0,
                "offset": 16,
                "timestamp": 1545084650988,
                "timestampType": "CREATE_TIME",
                "key": "abcDEFghiJKLmnoPQRstuVWXyz1234==",
                "value": "SGVsbG8sIHRoaXMgaXMgYSB0ZXN0Lg==",
                "headers": [{"headerKey": [104, 101, 97, 100, 101, 114, 86, 97, 108, 117, 101]}],
            },
            {
                "topic": "mytopic",
                "partition": 0,
                "offset": 15,
                "timestamp": 1545084650987,
                "key": "YQ==",
                "headers": [],
            },
        ]
    },
}
SELF_MANAGED_BATCH: dict[str, Any] = {
    "eventSource": "SelfManagedKafka",
    "bootstrapServers": "b-2.demo-cluster-1.a1bcde.c1.kafka.us-east-1.amazonaws.com:9092",
    "records": {
        "my-topic-1": [
            {
                "topic": "my-topic",
                "partition": 1,
                "offset": 3,
                "timestamp": 1545084650988,
                "timestampType": "CREATE_TIME",
                "key": None,
                "value": None,
                "headers": [{"signed": [-1, 127]}, {"signed": []}, {"none": None}],
            }
        ]
    },
}
HTTP_API: dict[str, Any] = {
    "version": "2.0",
    "routeKey": "$default",
    "rawPath": "/call/profile/ann/user_event",
    "rawQueryString": "wait=5s",
    "headers": {"content-type": "application/json", "host": "id.execute-api.us-east-1.amazonaws.com"},
    "requestContext": {
        "accountId": "123456789012",
        "apiId": "api-id",
        "domainName": "id.execute-api.us-east-1.amazonaws.com",
        "http": {
            "method": "POST",
            "path": "/call/profile/ann/user_event",
            "protocol": "HTTP/1.1",
            "sourceIp": "192.0.2.1",
            "userAgent": "agent",
        },
        "requestId": "id",
        "routeKey": "$default",
        "stage": "$default",
        "time": "12/Mar/2020:19:03:58 +0000",
        "timeEpoch": 1583348638390,
    },
    "body": base64.b64encode(b'{"id": "ann"}').decode(),
    "isBase64Encoded": True,
}
REST_API: dict[str, Any] = {
    "resource": "/{proxy+}",
    "path": "/call/profile/ann/user_event",
    "httpMethod": "POST",
    "headers": {"content-type": "application/json", "Host": "id.execute-api.us-east-1.amazonaws.com"},
    "multiValueHeaders": {
        "content-type": ["application/json"],
        "Host": ["id.execute-api.us-east-1.amazonaws.com"],
    },
    "queryStringParameters": {"wait": "5s"},
    "multiValueQueryStringParameters": {"wait": ["5s"]},
    "pathParameters": {"proxy": "call/profile/ann/user_event"},
    "stageVariables": None,
    "requestContext": {
        "accountId": "123456789012",
        "apiId": "id",
        "httpMethod": "POST",
        "identity": {"sourceIp": "192.0.2.1", "userAgent": "agent"},
        "path": "/Prod/call/profile/ann/user_event",
        "protocol": "HTTP/1.1",
        "requestId": "id",
        "resourcePath": "/{proxy+}",
        "stage": "Prod",
    },
    "body": '{"id": "ann"}',
    "isBase64Encoded": False,
}
WAKE = {"tenuto": "wake", "lane": "profile/ann"}
ASYNCHRONOUS_BYTES_MAX = 262_144
"""What an asynchronous invocation carries (AWS Lambda quotas: 256 KB)."""

TICK = {"tenuto": "sweep"}
ACTIVATION = json.loads(encode(Discover()))
SHAPES = {
    "msk": MSK_BATCH,
    "self-managed": SELF_MANAGED_BATCH,
    "http api": HTTP_API,
    "rest api": REST_API,
    "wake": WAKE,
    "tick": TICK,
    "activation": ACTIVATION,
}


@pytest.mark.parametrize(("name", "event"), SHAPES.items())
def test_no_shape_is_taken_for_another(name: str, event: Any) -> None:
    taken = {
        "batch": kafka_event_source.is_batch(event),
        "request": api_gateway.is_request(event),
        "payload": event_scheduler.is_payload(event),
    }
    kind = {"msk": "batch", "self-managed": "batch", "wake": "payload", "tick": "payload", "activation": None}
    assert [k for k, yes in taken.items() if yes] == ([k] if (k := kind.get(name, "request")) else [])


# --- Kafka ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_read_in_offset_order() -> None:
    first, second = kafka_event_source.read(MSK_BATCH)
    assert first == SourceRecord("mytopic", 0, 15, 1545084650987, b"a", None)
    assert (second.offset, second.value) == (16, b"Hello, this is a test.")
    assert second.headers == (("headerKey", b"headerValue"),)


def test_null_keys_values_and_signed_header_bytes_are_read() -> None:
    (record,) = kafka_event_source.read(SELF_MANAGED_BATCH)
    assert (record.key, record.value) == (None, None)
    assert record.headers == (("signed", b"\xff\x7f"), ("signed", b""), ("none", b""))


@pytest.mark.parametrize(
    "records",
    [
        None,
        [],
        {"t-0": [{"topic": "t"}]},
        {"t-0": [{"topic": "t", "partition": 0, "offset": 1, "value": "no base64!"}]},
    ],
)
def test_a_batch_of_another_form_is_refused(records: Any) -> None:
    with pytest.raises(ProtocolError, match="not a batch of a Kafka event source mapping"):
        kafka_event_source.read({"eventSource": "aws:kafka", "records": records})


def test_the_answer_names_the_lowest_unfinished_record_of_each_partition() -> None:
    records = [SourceRecord("a-b", 1, 9, 0, None, None), SourceRecord("a-b", 1, 7, 0, None, None)]
    records.append(SourceRecord("c", 0, 3, 0, None, None))
    assert kafka_event_source.answer(records) == {
        "batchItemFailures": [
            {"itemIdentifier": {"partition": "a-b-1", "offset": 7}},
            {"itemIdentifier": {"partition": "c-0", "offset": 3}},
        ]
    }
    assert kafka_event_source.answer([]) == {"batchItemFailures": []}


# --- EventBridge ---------------------------------------------------------------------------------------------------


def test_a_wake_up_survives_its_json() -> None:
    lane, timer = Lane("pro/file", "a#b%"), Key("T#1#2", "3#x#send#n")
    for payload in (event_scheduler.wake_up(lane), event_scheduler.wake_up(lane, timer)):
        woken = event_scheduler.decode(payload)
        assert isinstance(woken, event_scheduler.WakeUp)
        assert Lane.from_pk(woken.lane) == lane
        assert woken.timer in (None, timer)
    assert event_scheduler.read(TICK) == event_scheduler.SweepTick()


def test_what_is_handed_on_survives_its_json_and_fits_an_asynchronous_invocation() -> None:
    longest = Lane("s" * 128, "\u20ac" * 300).pk
    lanes = tuple(
        event_scheduler.HandedOn(longest, "T#29833333#3", f"{n:015d}#{'x' * 100}", f"host.1.{'f' * 16}.{n}")
        for n in range(HANDED_ON_TOGETHER)
    )
    for payload in (
        event_scheduler.Continue(lanes, 3),
        event_scheduler.SweepTick("owner", 2),
        event_scheduler.WakeUp("pro%2Ffile/a", owner="owner"),
    ):
        data = event_scheduler.encode(payload)
        assert event_scheduler.decode(data) == payload
        assert event_scheduler.is_payload(json.loads(data))
        assert len(data) < ASYNCHRONOUS_BYTES_MAX
    assert lanes[0].timer == Key("T#29833333#3", f"{0:015d}#{'x' * 100}")
    assert event_scheduler.HandedOn(longest).timer is None


@pytest.mark.parametrize(
    "event",
    [
        {"tenuto": "dance"},
        {"tenuto": "wake"},
        {"tenuto": "wake", "lane": 7},
        {"tenuto": "continue"},
        {"tenuto": "continue", "lanes": [{"lane": 7}]},
    ],
)
def test_another_payload_is_refused(event: Any) -> None:
    with pytest.raises(ProtocolError, match="not a tenuto wake-up"):
        event_scheduler.read(event)


def test_bytes_that_are_no_json_are_refused() -> None:
    with pytest.raises(ProtocolError, match="not a tenuto wake-up"):
        event_scheduler.decode(b"{")


# --- API Gateway ---------------------------------------------------------------------------------------------------


async def _echo(request: Request) -> Response:
    wait = request.query_params["wait"]
    return JSONResponse({"path": request.url.path, "wait": wait, "body": await request.json()}, 201)


@pytest.mark.parametrize("event", [HTTP_API, REST_API])
def test_a_request_reaches_the_application_on_the_loop_it_was_given(event: Any) -> None:
    loop = asyncio.new_event_loop()
    try:
        app = Starlette(routes=[Route("/{path:path}", _echo, methods=["POST"])])
        answer = api_gateway.bridge(app, loop)(event, None)
    finally:
        loop.close()
    assert answer["statusCode"] == 201
    assert json.loads(answer["body"]) == {"path": "/call/profile/ann/user_event", "wait": "5s", "body": {"id": "ann"}}


def test_what_is_no_request_is_refused() -> None:
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(ProtocolError, match="API Gateway"):
            api_gateway.bridge(Starlette(), loop)(MSK_BATCH, None)
    finally:
        loop.close()


# --- activations ---------------------------------------------------------------------------------------------------


def test_an_activation_is_read_and_everything_else_refused() -> None:
    assert activation.read(ACTIVATION) == Discover()
    with pytest.raises(ProtocolError, match="go to the control plane"):
        activation.read(MSK_BATCH)
