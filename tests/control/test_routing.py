"""From records to events: key rules, orderings, and what is refused with which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tenuto.protocol.ids import InvocationId, Lane, kafka_nonce
from tenuto.protocol.records import Event, KafkaSource
from tenuto_control.core.routing import (
    BytesKey,
    JsonKey,
    KeyRule,
    Ordering,
    Quarantine,
    Subscription,
    TextKey,
    dead_letter_forms,
    parse_key_rule,
    route,
    source_epoch,
)
from tenuto_control.ports import LogRecord


def record(
    key: bytes | None = b"k", value: bytes | None = b"{}", headers: tuple[tuple[str, bytes], ...] = ()
) -> LogRecord:
    return LogRecord("orders", 3, 42, 1_000, key, value, headers)


TEXT = TextKey()


def subscription(key: KeyRule = TEXT, ordering: Ordering = "key", dead_letter: str | None = None) -> Subscription:
    return Subscription("orders", "profile", "update", key, ordering, dead_letter, epoch="e1")


def key_of(outcome: Event | Quarantine) -> str:
    assert isinstance(outcome, Event), outcome
    return InvocationId.parse(outcome.id).lane.key


def test_an_event_carries_everything_of_its_record() -> None:
    headers = (("trace", b"\x00\x01"), ("trace", b"again"), ("", b""))
    event = route(record(b"caf\xc3\xa9", b"\xff", headers), subscription())
    assert event == Event(
        id=str(InvocationId(Lane("profile", "café"), kafka_nonce("e1", "orders", 3, 42))),
        handler="update",
        source=KafkaSource("e1", "orders", 3, 42, 1_000, b"caf\xc3\xa9", "orders.dead-letter"),
        input=b"\xff",
        headers=headers,
    )


def test_a_tombstone_reaches_the_handler_as_none() -> None:
    event = route(record(value=None), subscription())
    assert isinstance(event, Event)
    assert event.input is None


@pytest.mark.parametrize(
    ("rule", "key", "value", "expected"),
    [
        (TextKey(), "é\u2028 ~".encode(), b"", "é\u2028 ~"),
        (BytesKey(), b"\x00\xff", b"", "00ff"),
        (JsonKey(("id",)), None, b'{"id": "a"}', "a"),
        (
            JsonKey(("user", "id")),
            b"ignored",
            b'{"user": {"id": 12345678901234567890123}}',
            "12345678901234567890123",
        ),
        (JsonKey(("id",)), None, b'{"id": -7}', "-7"),
    ],
)
def test_keys_by_rule(rule: KeyRule, key: bytes | None, value: bytes, expected: str) -> None:
    assert key_of(route(record(key, value), subscription(rule))) == expected


@pytest.mark.parametrize(
    ("rule", "key", "value", "reason"),
    [
        (TextKey(), None, b"", "has no key"),
        (BytesKey(), None, b"", "has no key"),
        (TextKey(), b"\xff", b"", "not UTF-8"),
        (TextKey(), b"", b"", "the key is empty"),
        (BytesKey(), b"", b"", "the key is empty"),
        (TextKey(), b"a\x00b", b"", "the key holds the control character U+0000"),
        (TextKey(), "a\x85b".encode(), b"", "the key holds the control character U+0085"),
        (JsonKey(("id",)), b"k", b'{"id": ""}', "the key is empty"),
        (JsonKey(("id",)), b"k", b'{"id": "a\\u007f"}', "the key holds the control character U+007F"),
        (TextKey(), b"x" * 1025, b"", "1025 bytes long; at most 1024"),
        (TextKey(), b"%" * 1000, b"", "as a partition key; at most 2048"),
        (BytesKey(), b"x" * 513, b"", "1026 bytes long"),
        (JsonKey(("id",)), b"k", None, "a tombstone has no field"),
        (JsonKey(("id",)), b"k", b"{", "not JSON"),
        (JsonKey(("id",)), b"k", b"\xff", "not JSON"),
        (JsonKey(("id",)), b"k", b"[" * 100_000, "not JSON"),
        (JsonKey(("id",)), b"k", b"[1]", "no field"),
        (JsonKey(("id", "x")), b"k", b'{"id": "a"}', 'no field "id.x"'),
        (JsonKey(("id",)), b"k", b'{"id": null}', "holds null"),
        (JsonKey(("id",)), b"k", b'{"id": true}', "holds a boolean"),
        (JsonKey(("id",)), b"k", b'{"id": 1.5}', "holds a fraction"),
        (JsonKey(("id",)), b"k", b'{"id": {}}', "holds an object"),
        (JsonKey(("id",)), b"k", b'{"id": []}', "holds a list"),
    ],
)
def test_refusals_say_why(rule: KeyRule, key: bytes | None, value: bytes | None, reason: str) -> None:
    outcome = route(record(key, value), subscription(rule))
    assert isinstance(outcome, Quarantine)
    assert reason in outcome.reason


def test_unkeyed_orderings_need_no_key() -> None:
    assert key_of(route(record(None), subscription(ordering="partition"))) == "orders/3"
    assert key_of(route(record(None), subscription(ordering="none"))) == kafka_nonce("e1", "orders", 3, 42)


@given(
    st.one_of(st.none(), st.binary(max_size=40)),
    st.one_of(
        st.none(),
        st.binary(max_size=40),
        st.sampled_from([b'{"id":' + b"9" * 5_000 + b"}", b'{"id":"\\ud800"}']),
    ),
    st.sampled_from([TextKey(), BytesKey(), JsonKey(("id",))]),
    st.sampled_from(["key", "partition", "none"]),
)
def test_routing_is_total(key: bytes | None, value: bytes | None, rule: KeyRule, ordering: Ordering) -> None:
    outcome = route(record(key, value), subscription(rule, ordering))
    assert isinstance(outcome, Event | Quarantine)
    if isinstance(outcome, Event):
        assert outcome.nonce == kafka_nonce("e1", "orders", 3, 42)


def test_another_life_of_a_topic_gives_other_sources_and_invocations() -> None:
    lives = [replace(record(), topic_id=one) for one in ("", "0123456789abcdef" * 2, "fedcba9876543210" * 2)]
    events = [route(life, subscription()) for life in lives]
    sources = [event.source for event in events if isinstance(event, Event)]
    assert [source.epoch for source in sources if isinstance(source, KafkaSource)] == [
        "e1",
        "e1.01234567",
        "e1.fedcba98",
    ]
    assert len({event.id for event in events if isinstance(event, Event)}) == len(lives)
    # A topic whose broker tells no id, or told none before, keeps the names it had.
    assert source_epoch("e1", "") == "e1"


def test_quarantined_records_keep_their_headers_and_gain_reasons() -> None:
    whole, *smaller = dead_letter_forms(record(headers=(("a", b"1"),)), "because é")
    reasons = (
        ("tenuto-reason", "because é".encode()),
        ("tenuto-source-topic", b"orders"),
        ("tenuto-source-partition", b"3"),
        ("tenuto-source-offset", b"42"),
    )
    assert (whole.value, whole.key, whole.lacks) == (b"{}", b"k", "")
    assert whole.headers == (("a", b"1"), *reasons)
    assert [(form.value, form.key, form.headers) for form in smaller] == [
        (b"{}", b"k", (("a", b"1"),)),
        (None, b"k", (*reasons, ("tenuto-omitted", b"value, headers"))),
        (None, None, (*reasons, ("tenuto-omitted", b"value, headers, key"))),
    ]
    assert subscription(dead_letter="graveyard").dead_letter_topic == "graveyard"


def test_a_reason_is_cut_between_characters() -> None:
    reason = dict(dead_letter_forms(record(), "x" + "é" * 5_000)[0].headers)["tenuto-reason"]
    assert 1_000 < len(reason) <= 1_024
    assert reason.decode().startswith("xé")


def test_key_rules_are_read_from_text() -> None:
    assert parse_key_rule("utf-8") == TextKey()
    assert parse_key_rule("bytes") == BytesKey()
    assert parse_key_rule("json:user.id") == JsonKey(("user", "id"))
    for text in ("utf8", "json:", "json:a..b", "json"):
        with pytest.raises(ValueError, match="not a key rule: use"):
            parse_key_rule(text)
