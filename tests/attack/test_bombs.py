"""Decompression bombs: a few kilobytes from a producer take no more memory than a batch may, whatever they stand for.

Owns codecs, the reader of batches and the fetcher, with batches made byte by byte. Does not own what becomes of the
dead letter (`tests/control/test_consume`). Memory is measured: what Python allocates, and for what libraries allocate
on their own, the growth of this process.
"""

from __future__ import annotations

import asyncio
import gzip
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiokafka import codec
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto_control.core.routing import Quarantine, Subscription
from tenuto_control.drivers import kafka_batches
from tenuto_control.drivers.kafka_batches import HELD_MAX, Answer, Fetched
from tenuto_control.drivers.kafka_codecs import TooLargeInflatedError, inflated
from tenuto_control.loops import consume
from tenuto_control.ports import LogRecord
from tests.attack.examples import examples
from tests.hostile.test_fetch_answers import BAD, GOOD, LIMITS, Broker, Reader
from tests.support.raw_batches import CODECS, Raw, batch

MIB = 1024 * 1024
BOUND = 2 * MIB
COMPRESSED = [name for name in CODECS if name != "none"]


def members(count: int, each: int) -> bytes:
    """Gzip members, one after the other."""
    return gzip.compress(bytes(each)) * count


def packed(name: str, content: bytes) -> bytes:
    """Content as a producer with that codec sends it."""
    return bytes(getattr(codec, f"{name}_encode")(content))


BOMBS: dict[str, tuple[str, bytes]] = {
    **{f"{name}, {size} MiB": (name, packed(name, bytes(size * MIB))) for name in COMPRESSED for size in (3, 24)},
    "gzip, in many members": ("gzip", members(100, MIB)),
    "gzip, in endless empty members and one that is none": ("gzip", members(1_000, 0) + gzip.compress(bytes(64 * MIB))),
    "snappy, unframed": ("snappy", bytes(codec.snappy_encode(bytes(24 * MIB), xerial_compatible=False))),
    "snappy, that claims 4 GB": ("snappy", b"\xff\xff\xff\xff\x0f" + b"\0" * 50),
    "snappy, framed, of a block that claims 4 GB": (
        "snappy",
        packed("snappy", b"x")[:16] + struct.pack(">i", 20) + b"\xff\xff\xff\xff\x0f" + b"\0" * 15,
    ),
    "zstd, in many frames": ("zstd", packed("zstd", bytes(MIB)) * 64),
    "lz4, in many frames": ("lz4", packed("lz4", bytes(MIB)) * 64),
}


@contextmanager
def at_most(bytes_max: int) -> Iterator[None]:
    """Python allocates no more than that at any time."""
    tracemalloc.start(1)
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < bytes_max, f"{peak / MIB:.0f} MiB at most"


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A few times the bound suffices."""
    with at_most(6 * BOUND):
        yield


def read(raw: bytes, bound: int = BOUND, begin: int = 0) -> tuple[list[Fetched], int]:
    """All records of an answer, and the offset behind them."""
    answer = Answer(raw, (), begin, bound)
    found: list[Fetched] = []
    while not answer.exhausted:
        if answer.large:
            answer.prepare()
        found += answer.take(500)
    return found, answer.next_offset


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", BOMBS)
def test_no_codec_gives_more_than_its_bound(name: str) -> None:
    kind, body = BOMBS[name]
    with pytest.raises(TooLargeInflatedError):
        inflated(CODECS[kind], body, BOUND)


@pytest.mark.parametrize("kind", COMPRESSED)
@given(content=st.binary(min_size=1, max_size=3_000), repeated=st.integers(1, 40), off=st.sampled_from((-1, 0, 1)))
@settings(max_examples=examples(60), deadline=None)
def test_the_bound_is_exact(kind: str, content: bytes, repeated: int, off: int) -> None:
    whole = content * repeated
    bound = max(0, len(whole) + off)
    if bound >= len(whole):
        assert inflated(CODECS[kind], packed(kind, whole), bound) == whole
        return
    with pytest.raises(TooLargeInflatedError):
        inflated(CODECS[kind], packed(kind, whole), bound)


def test_gzip_of_several_members_is_read_to_its_end() -> None:
    body = gzip.compress(b"one ") + gzip.compress(b"two") + bytes(8)
    assert inflated(CODECS["gzip"], body, 100) == b"one two"
    for broken in (gzip.compress(b"one")[:-1], gzip.compress(b"one") + b"junk"):
        with pytest.raises((EOFError, zlib.error)):
            inflated(CODECS["gzip"], broken, 100)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_dead_letter_as_it_was_sent_and_the_batches_around_it_are_read(name: str) -> None:
    kind, body = BOMBS[name]
    bomb = batch([Raw()] * 3, base=2, compression=kind, content=body)
    found, after = read(batch([Raw(b"0"), Raw(b"1")]) + bomb + batch([Raw(b"behind")], base=5))
    assert after == 6
    assert [(one.offset, one.value) for one in found] == [(0, b"0"), (1, b"1"), (4, bomb), (5, b"behind")]
    assert "batch of 3 records from offset 2 on takes more than 2,097,152 bytes" in found[2].unreadable
    assert "batch_inflated_bytes_max" in found[2].unreadable
    # Read on in its middle, as after a restart, it is the same dead letter.
    assert read(bomb, begin=3)[0] == [found[2]]
    letter = LogRecord("t", 0, 4, 0, None, bomb, (), "", found[2].unreadable)
    assert consume._meaning(letter, Subscription("t", "box", "keep")) == Quarantine(found[2].unreadable)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", COMPRESSED)
def test_of_a_batch_of_many_records_few_are_held_at_a_time(kind: str) -> None:
    count = 12_345
    answer = Answer(batch([Raw(b"", None)] * count, compression=kind), (), 0, BOUND)
    taken = 0
    while not answer.exhausted:
        if answer.large:
            answer.prepare()
        some = answer.take(500)
        assert [one.offset for one in some] == list(range(taken, taken + len(some)))
        assert len(answer._ready) <= HELD_MAX
        taken += len(some)
    assert (taken, answer.next_offset) == (count, count)


def old(magic: int) -> bytes:
    """A compressed set of messages of an old format."""
    builder = LegacyRecordBatchBuilder(magic, 1, 100 * MIB)
    builder.append(0, 0, None, bytes(40 * MIB))
    return bytes(builder.build())


OLD = [old(0), old(1)]


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("magic", [0, 1])
def test_a_set_of_messages_of_an_old_format_is_bounded_too(magic: int) -> None:
    bomb = OLD[magic]
    found, after = read(bomb + batch([Raw(b"behind")], base=1))
    assert ([one.value for one in found], after) == ([bomb, b"behind"], 2)
    assert "old format" in found[0].unreadable


def test_an_answer_hands_out_no_record_more_once_it_has_the_bytes() -> None:
    raw = batch([Raw(bytes(1_000)) for _ in range(50)], compression="gzip")
    answer = Answer(raw, (), 0, BOUND)
    assert len(answer.take(500, 10_000)) == 10
    assert answer.next_offset == 10
    assert len(answer.take(500, 1)) == 1
    assert len(answer.take(7, MIB)) == 7
    assert len(answer.take(500, MIB)) == 32
    assert answer.exhausted


# --- the fetcher ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in BOMBS if "24" in name or "many" in name])
def test_a_bomb_is_inflated_beside_the_event_loop_and_the_other_partition_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, body = BOMBS[name]
    bomb = batch([Raw()], compression=kind, content=body)
    threads: list[bool] = []
    plain: Callable[[int, bytes, int], bytes] = inflated

    def noted(kind: int, body: bytes, bytes_max: int) -> bytes:
        if kind and bytes_max > MIB:
            threads.append(threading.current_thread() is threading.main_thread())
        return plain(kind, body, bytes_max)

    monkeypatch.setattr(kafka_batches, "inflated", noted)

    async def scenario() -> None:
        broker = Broker({BAD: [b"0", b"1"], GOOD: [b"a", b"b"]}, lambda told: _spoilt(told, bomb))
        reader = Reader(broker)
        try:
            async with asyncio.timeout(20):
                while not (len(reader.read[BAD]) == len(reader.read[GOOD]) == 2):
                    await reader.poll_for(0.05)
            assert reader.read == {BAD: [bomb, b"1"], GOOD: [b"a", b"b"]}
            assert reader.troubles == []
        finally:
            await reader.fetcher.close()

    # On real time: what waits for a thread does so.
    with at_most(4 * LIMITS.batch_inflated_bytes_max):
        asyncio.run(scenario())
    assert threads
    assert not any(threads)


def _spoilt(told: list[Any], bomb: bytes) -> list[Any]:
    """The first record's place is taken by a bomb."""
    first = batch([Raw(b"0")])
    return [*told[:7], told[7].replace(first, bomb)] if told[7].startswith(first) else told
