"""Reading the log: whatever lies in a partition, its sound records are delivered and the others cost nothing else.

Batches are made byte by byte and read by the driver's own decoder. What a real broker does with them is seen in
`tests/contract/test_unreadable.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from aiokafka import codec
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto_control.drivers import kafka_batches, kafka_codecs
from tenuto_control.drivers.kafka_batches import Answer, Fetched, UnreadableError
from tests.support.raw_batches import CODECS, CONTROL, PRODUCED_MS, TRANSACTIONAL, Raw, batch, record, varint

MANY = 1_000
SOME = [Raw(b"0"), Raw(b"1"), Raw(b"2")]
COMPRESSIONS = [*CODECS]
ABORT, COMMIT, UNKNOWN = (struct.pack(">hh", 0, kind) for kind in (0, 1, 9))


def read(*batches: bytes, aborted: Sequence[tuple[int, int]] = (), begin: int = 0) -> tuple[list[Fetched], int]:
    """Everything in an answer that consists of these batches, and the offset to read next."""
    answer = Answer(b"".join(batches), aborted, begin)
    records: list[Fetched] = []
    while not answer.exhausted:
        records += answer.take(MANY)
    return records, answer.next_offset


def values(records: Sequence[Fetched]) -> list[bytes | None]:
    return [one.value for one in records]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@given(
    records=st.lists(
        st.builds(
            Raw,
            value=st.none() | st.binary(max_size=40),
            key=st.none() | st.binary(max_size=10),
            headers=st.lists(st.tuples(st.binary(max_size=6), st.none() | st.binary(max_size=6)), max_size=3),
            since_ms=st.integers(-(2**62), 2**62),
        ),
        max_size=6,
    ),
    base=st.integers(0, 2**40),
)
@settings(max_examples=40, deadline=None)
def test_what_was_produced_is_what_is_read(compression: str, records: list[Raw], base: int) -> None:
    found, after = read(batch(records, base=base, compression=compression), begin=base)
    assert after == base + max(1, len(records))
    assert [(one.offset, one.key, one.value, one.timestamp_ms) for one in found] == [
        (base + index, raw.key, raw.value, PRODUCED_MS + raw.since_ms) for index, raw in enumerate(records)
    ]
    for one, raw in zip(found, records, strict=True):
        expected = [
            (name.decode("utf-8", "backslashreplace"), value) for name, value in raw.headers if name is not None
        ]
        assert list(one.headers) == expected
        assert not one.unreadable


@pytest.mark.parametrize(
    ("name", "read_as"),
    [
        (b"\xff", r"\xff"),
        (b"caf\xe9", r"caf\xe9"),
        (b"\xed\xb3\xa9", r"\xed\xb3\xa9"),
        (b"\xf8\x88\x80\x80\x80", r"\xf8\x88\x80\x80\x80"),
        ("ü".encode(), "ü"),
        (b"", ""),
        (b"a\x00b", "a\x00b"),
    ],
)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_header_name_of_any_bytes_is_read_and_can_be_encoded(compression: str, name: bytes, read_as: str) -> None:
    poisoned = Raw(b"1", headers=[(b"before", b"x"), (name, b"\xff"), (name, None)])
    found, after = read(batch([Raw(b"0"), poisoned, Raw(b"2")], compression=compression))
    assert values(found) == [b"0", b"1", b"2"]
    assert list(found[1].headers) == [("before", b"x"), (read_as, b"\xff"), (read_as, None)]
    assert found[1].headers[1][0].encode().decode() == read_as
    assert after == 3


BROKEN_BODIES = {
    "empty": b"",
    "attributes alone": b"\0",
    "cut off in a number": b"\0\x80",
    "a number without an end": b"\0" + b"\xff" * 12,
    "a key beyond the record": b"\0\0\x02" + varint(99) + b"k",
    "a value of 2 GiB": b"\0\0\x02" + varint(-1) + varint(2**31 - 1),
    "a length of 2^62": b"\0\0\x02" + varint(2**62),
    "headers without end": b"\0\0\x02" + varint(-1) + varint(-1) + varint(2**31 - 1),
    "a negative number of headers": b"\0\0\x02" + varint(-1) + varint(-1) + varint(-5),
    "a header without a name": record(Raw(b"1", headers=[(None, b"x")]), 1)[1:],
    "bytes left over": record(Raw(b"1"), 1)[1:] + b"more",
    "another offset": record(Raw(b"1", delta=7), 1)[1:],
    "an offset before its batch": record(Raw(b"1", delta=-3), 1)[1:],
}


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES.keys())
def test_a_record_that_breaks_the_format_is_one_for_the_dead_letters(body: bytes, compression: str) -> None:
    found, after = read(batch([Raw(b"0"), Raw(body=body), Raw(b"2")], compression=compression))
    assert [one.offset for one in found] == [0, 1, 2]
    assert (found[0].value, found[2].value, after) == (b"0", b"2", 3)
    assert found[1].value == body
    assert found[1].unreadable.startswith("the record breaks Kafka's format: ")
    assert (found[1].key, list(found[1].headers)) == (None, [])
    assert not found[0].unreadable
    assert not found[2].unreadable


SOUND = batch(SOME, base=3)
UNSOUND = {
    "checksum": SOUND[:-1] + bytes([SOUND[-1] ^ 1]),
    "attributes": SOUND[:22] + bytes([SOUND[22] ^ 0x40]) + SOUND[23:],
    "format 3": batch(SOME, base=3, version=3),
    "format 127": batch(SOME, base=3, version=127),
    "an unknown codec": batch(SOME, base=3, attributes=7),
    "a codec that it is not": batch(SOME, base=3, attributes=CODECS["lz4"], content=b"no lz4 at all"),
    "gzip cut off": batch(SOME, base=3, compression="gzip", content=codec.gzip_encode(b"x" * 99)[:-9]),
    "snappy of garbage": batch(SOME, base=3, compression="snappy", content=b"\xff" * 40),
    "zstd of garbage": batch(SOME, base=3, compression="zstd", content=b"(\xb5/\xfd" + b"\xff" * 40),
    "more records than offsets": batch(SOME, base=3, last=1),
    "fewer records than it says": batch(SOME, base=3, count=5, last=9),
    "records left over": batch(SOME, base=3, count=2),
    "a negative number of records": batch(SOME, base=3, count=-4, last=5),
    "a negative last offset": batch(SOME, base=3, last=-7),
    "a negative first offset": batch(SOME, base=-3),
    "a length of nothing": struct.pack(">qi", 3, 0) + b"\0" * 80,
    "a negative length": struct.pack(">qi", 3, -12) + b"\0" * 80,
    "larger than what was handed out": SOUND[:-1],
    "a header cut off": SOUND[:30],
    "an old message with another checksum": struct.pack(">qiIbbii", 3, 14, 1, 0, 0, -1, -1),
    "an old message that is cut off": struct.pack(">qiIbb", 3, 14, 1, 1, 0) + b"\0" * 8,
    "garbage": b"\xff" * 200,
    "a gap beside a broken record": batch([Raw(b"0"), Raw(body=b"\0")], base=3, last=8),
}


@pytest.mark.parametrize("unsound", UNSOUND.values(), ids=UNSOUND.keys())
def test_a_batch_that_cannot_be_read_holds_back_no_record_before_it(unsound: bytes) -> None:
    answer = Answer(batch(SOME) + unsound, (), 0)
    if unsound in {UNSOUND["larger than what was handed out"], UNSOUND["a header cut off"]}:
        # At the end of an answer, that is a batch that is fetched again; it cannot be read when it comes first.
        assert values(answer.take(MANY)) == [b"0", b"1", b"2"]
        assert answer.exhausted
        answer = Answer(unsound, (), 3)
    else:
        assert values(answer.take(2)) == [b"0", b"1"]
        assert values(answer.take(MANY)) == [b"2"]
    for _ in range(2):
        with pytest.raises(UnreadableError) as told:
            answer.take(MANY)
        assert answer.next_offset == 3
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 500


@pytest.mark.parametrize("name", ["snappy", "lz4", "zstd"])
def test_a_codec_without_its_library_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    compressed = batch(SOME, compression=name)
    monkeypatch.setattr(codec, "cramjam", None)
    with pytest.raises(UnreadableError, match=f"(?i){name} codec is not available"):
        read(compressed)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_bytes_make_the_decoder_raise_anything_else(data: st.DataObject) -> None:
    """Sound batches with some bytes changed, with and without a checksum that fits."""
    compression = data.draw(st.sampled_from(COMPRESSIONS))
    whole = bytearray(batch([Raw(b"value" * 5, headers=[(b"name", b"content")])] * 3, compression=compression))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = bytes(whole[61:])
        whole = bytearray(batch([Raw()] * 3, compression=compression, content=content))
    answer = Answer(bytes(whole) + batch([Raw(b"behind")], base=3), (), 0)
    offsets: list[int] = []
    reason = ""
    for _ in range(9):
        try:
            offsets += [one.offset for one in answer.take(MANY)]
        except UnreadableError as e:
            reason = str(e)
        if answer.large:
            # It says that it is: the reader prepares it in a thread.
            answer.prepare()
    assert answer.exhausted or reason
    assert reason.isprintable()
    assert offsets == sorted(set(offsets))


def test_a_codec_that_panics_makes_its_batch_unreadable_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Rust's panics become in Python is no Exception."""

    class PanicException(BaseException):
        pass

    def panic(*_: object) -> bytes:
        raise PanicException("index out of bounds")

    class Panicking:
        def __init__(self, raw: bytes) -> None:
            self.validate_crc = DefaultRecordBatch(raw).validate_crc

        def __iter__(self) -> Iterator[Any]:
            raise PanicException("index out of bounds")

    compressed = batch(SOME, compression="gzip")
    monkeypatch.setattr(kafka_codecs, "DECODERS", {1: panic})
    monkeypatch.setattr(kafka_batches, "DefaultRecordBatch", Panicking)
    with pytest.raises(UnreadableError, match="PanicException: index out of bounds"):
        read(compressed)


# --- what holds no record for a reader --------------------------------------------------------------------------------


def marker(base: int, key: bytes | None, producer: int = 7) -> bytes:
    records = [] if key is None else [Raw(value=b"\0" * 6, key=key)]
    return batch(records, base=base, attributes=TRANSACTIONAL | CONTROL, producer=producer)


def transaction(base: int, *contents: bytes, producer: int = 7) -> bytes:
    return batch([Raw(one) for one in contents], base=base, attributes=TRANSACTIONAL, producer=producer)


def test_aborted_transactions_are_passed_and_others_are_not() -> None:
    found, after = read(
        transaction(0, b"a0", b"a1"),
        transaction(2, b"b0", producer=8),
        marker(3, ABORT),
        transaction(4, b"a2"),
        marker(5, COMMIT),
        marker(6, COMMIT, producer=8),
        aborted=[(7, 0)],
    )
    assert values(found) == [b"b0", b"a2"]
    assert after == 7


@pytest.mark.parametrize("key", [None, b"", b"\0", UNKNOWN], ids=["no record", "no key", "half a key", "unknown kind"])
def test_a_marker_that_says_nothing_is_passed(key: bytes | None) -> None:
    """Compaction leaves control batches without their record; newer brokers may write other kinds."""
    found, after = read(transaction(0, b"0"), marker(1, key), transaction(2, b"1"), begin=0)
    assert values(found) == [b"0", b"1"]
    assert after == 3


def test_batches_that_compaction_has_emptied_are_passed() -> None:
    found, after = read(batch([], last=9), batch([Raw(b"x", delta=4)], base=10, last=7), batch([], base=18, last=0))
    assert [(one.offset, one.value) for one in found] == [(14, b"x")]
    assert after == 19


def test_reading_begins_in_the_middle_of_a_batch() -> None:
    found, after = read(batch(SOME), begin=2)
    assert (values(found), after) == ([b"2"], 3)


def test_attributes_that_have_no_meaning_yet_are_no_obstacle() -> None:
    found, _ = read(batch(SOME, attributes=0x7FC0))
    assert values(found) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("first_ms", [-1, -(2**63), 2**63 - 1, 0])
def test_any_timestamp_is_read(first_ms: int) -> None:
    found, _ = read(batch([Raw(b"0", headers=[(b"\xff", b"")]), Raw(b"1")], first_ms=first_ms))
    assert [one.timestamp_ms for one in found] == [first_ms, first_ms]
