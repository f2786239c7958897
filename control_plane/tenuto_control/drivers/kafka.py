"""Kafka as the event log and as the record sink, on aiokafka.

Owns reading, committing, waiting for topics that do not exist yet, and the producers. Does not own which partitions are
read from where (`kafka_membership`), nor what is committed or when.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import aiokafka
from aiokafka.errors import (
    BrokerResponseError,
    ConsumerStoppedError,
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from tenuto.protocol.topics import topic_problem
from tenuto_control.config import KafkaConfig
from tenuto_control.core.routing import Start
from tenuto_control.drivers.kafka_batches import Fetched
from tenuto_control.drivers.kafka_client import (
    connection_settings,
    describe,
    kafka_errors_only,
    quiet_client_log,
)
from tenuto_control.drivers.kafka_consumer import GroupConsumer
from tenuto_control.drivers.kafka_membership import Membership, mark, of_client
from tenuto_control.limits import Limits
from tenuto_control.ports import (
    AssignmentListener,
    LogRecord,
    LogUnavailableError,
    RecordRefusedError,
    RecordTooLargeError,
    TopicPartition,
    TopicUnusableError,
    Unreadable,
)

TOPIC_CHECK_INTERVAL_S = 2.0
"""How often it is asked whether a topic was deleted and created again, which a consumer's client does not tell."""

TOPIC_RETRY_INTERVAL_S = 0.3
"""The same, while partitions wait for the answer."""

MISSING_TOPICS_INTERVAL_S = 2.0
"""How often topics that do not exist yet are looked for."""

METADATA_AGE_MAX_MS = 5_000
"""How late the group may learn of new topics and partitions."""

FETCH_WAIT_MS = 250
REBALANCE_MARGIN_MS = 5_000
"""Beyond draining, a member has this long to commit and to join again before its group continues without it."""

REQUEST_BYTES_MAX = 32 * 1024 * 1024
"""No bound of this side's own on produced records: the topic's `max.message.bytes` decides."""

LARGE_RECORD_BYTES = 64 * 1024
"""From here on a topic may be expected to refuse a record for its size; Kafka's own bound is about 1 MB."""

ORDINARY_BATCH_BYTES = 16 * 1024
"""Small records that wait go together; one that is larger, or may be too large, goes alone."""

ACKNOWLEDGE_MARGIN_S = 1.0
"""Above the client's own bound, so that where it can say what is wrong, it does."""

STOP_TIMEOUT_S = 5.0

_log = logging.getLogger("tenuto_control.kafka")
# Timeouts are among the operating system's errors.
_ERRORS = (KafkaError, OSError)


class KafkaEventLog:
    """One member of the consumer group (the EventLog port). After `stop` it may be started again."""

    def __init__(self, kafka: KafkaConfig, limits: Limits, starts: Mapping[str, Start]) -> None:
        """`starts` says where a topic is read from while its group has no committed offset.

        The default is `earliest`.
        """
        self._kafka = kafka
        self._limits = limits
        self._starts = starts
        self._settings = connection_settings(kafka, limits)
        self._consumer: Any = None
        self._membership: Membership | None = None
        self._joined: tuple[Sequence[str], AssignmentListener] | None = None
        self._watching: list[asyncio.Task[None]] = []

    async def start(self, topics: Sequence[str], listener: AssignmentListener) -> None:
        """Connect and join the group in the background.

        Raises LogUnavailableError; may then be called again.
        """
        assert self._consumer is None, "the event log is started already"
        quiet_client_log()
        limits = self._limits
        consumer = GroupConsumer(
            **self._settings,
            limits=limits,
            group_id=self._kafka.group_id,
            enable_auto_commit=False,
            # A committed offset that the log no longer has leads to its oldest record, never past unread
            # ones.
            auto_offset_reset="earliest",
            session_timeout_ms=limits.session_timeout_ms,
            heartbeat_interval_ms=limits.heartbeat_interval_ms,
            rebalance_timeout_ms=limits.drain_timeout_ms + REBALANCE_MARGIN_MS,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=limits.fetch_bytes_max,
            metadata_max_age_ms=METADATA_AGE_MAX_MS,
        )
        try:
            # Started without topics, because with them aiokafka would wait here for every topic to exist.
            with kafka_errors_only():
                await consumer.start()
                absent = set(topics) - await consumer.topics()
        except _ERRORS as e:
            await _close(consumer)
            raise LogUnavailableError(describe(e, self._kafka)) from e
        except BaseException:
            await _close(consumer)
            raise
        self._consumer = consumer
        self._joined = (topics, listener)
        self._membership = Membership(
            consumer, listener, self._starts, self._request_timeout_s, limits.unreadable_after_ms / 1_000, absent
        )
        consumer.subscribe(topics, listener=self._membership)
        self._watching = [
            asyncio.create_task(self._await_missing(consumer, frozenset(topics)), name="await topics"),
            asyncio.create_task(_watch_topics(self._membership), name="watch topics"),
        ]

    async def poll(self, max_records: int, timeout_ms: int) -> list[LogRecord]:
        """Records in offset order per partition; empty after the timeout and while the group rebalances.

        A client that has broken down is replaced first.

        aiokafka checks a batch against the assignment and hands it over without a pause in between, so
        records of an assignment that has ended are never returned.
        """
        await self._replace_broken()
        membership = self._member()
        try:
            with kafka_errors_only():
                try:
                    # aiokafka waits without bound while the group rebalances, hence the second bound around its own.
                    async with asyncio.timeout(2 * timeout_ms / 1_000):
                        batches = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=max_records)
                except TimeoutError:
                    return []
                admitted = await membership.admit(batches)
        except Exception as e:
            membership.rewind()
            if not isinstance(e, (*_ERRORS, ConsumerStoppedError)):
                _log.exception("reading from the log failed unexpectedly")
            raise LogUnavailableError(describe(e, self._kafka)) from e
        return [_record(tp, one, membership.topic_id(tp.topic)) for tp, records in admitted for one in records]

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Stop delivering these partitions; those that are not ours (any more) are passed over."""
        if self._consumer is not None:
            self._consumer.pause(*self._member().owned(partitions))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Deliver these partitions again; those that are not ours (any more) are passed over."""
        if self._consumer is not None:
            self._consumer.resume(*self._member().owned(partitions))

    def lag(self) -> int:
        """Offsets of the assigned partitions that can be read and have not been, as of the last two seconds."""
        return self._member().lag() if self._consumer is not None else 0

    def unreadable(self) -> list[Unreadable]:
        """The assigned partitions that cannot be read at present."""
        return self._member().unreadable() if self._consumer is not None else []

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store offsets, each with the id of its topic: they mean nothing in another life of it.

        LogUnavailableError when the group has moved on without this member or does not answer.
        """
        if self._consumer is None:
            raise LogUnavailableError("this member is joining its group again")
        try:
            # aiokafka tries again without bound while the coordinator is away.
            with kafka_errors_only():
                async with asyncio.timeout(self._request_timeout_s):
                    await self._consumer.commit(self._marked(offsets))
        except _ERRORS as e:
            raise LogUnavailableError(describe(e, self._kafka)) from e

    def _marked(self, offsets: Mapping[TopicPartition, int]) -> dict[Any, tuple[int, str]]:
        """Offsets as they are stored. Those of a topic that was deleted would be refused, and the others with them."""
        member = self._member()
        return {
            of_client(tp): (member.committable(tp, offset), mark(member.topic_id(tp.topic)))
            for tp, offset in offsets.items()
            if self._consumer.partitions_for_topic(tp.topic)
        }

    async def stop(self) -> None:
        """Leave the group, without another call of the listener. Nothing happens when it was not started."""
        self._joined = None
        await self._leave()

    async def _leave(self) -> None:
        consumer, self._consumer = self._consumer, None
        watching, self._watching = self._watching, []
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        if consumer is not None:
            await _close(consumer)

    async def _replace_broken(self) -> None:
        """Join again when the client's own tasks have ended: it would say nothing more, indefinitely.

        Raises LogUnavailableError, and tries again at the next call.
        """
        assert self._joined is not None, "the event log was never started"
        if self._consumer is not None:
            if not self._consumer.broken:
                return
            _log.error("the member of group %s failed; a new one replaces it", self._kafka.group_id)
            await self._member().let_go()
            await self._leave()
        await self.start(*self._joined)

    @property
    def _request_timeout_s(self) -> float:
        return self._limits.log_request_timeout_ms / 1_000

    def _member(self) -> Membership:
        assert self._membership is not None, "the event log was never started"
        return self._membership

    async def _await_missing(self, consumer: Any, topics: frozenset[str]) -> None:
        """Say once which topics do not exist, and have the group take them in as they appear."""
        known: frozenset[str] | None = None
        while True:
            try:
                with kafka_errors_only():
                    existing = topics & await consumer.topics()
            except Exception:  # noqa: BLE001 - whatever it is, topics that are missing must be looked for again
                existing = known
            if existing is not None and existing != known:
                for topic in sorted(topics - existing):
                    _log.warning('topic "%s" does not exist; its subscription waits until it is created', topic)
                for topic in sorted(existing - known if known is not None else ()):
                    _log.info('topic "%s" exists now', topic)
                known = existing
            if known == topics:
                return
            await asyncio.sleep(MISSING_TOPICS_INTERVAL_S)


class KafkaSink:
    """Producers that wait for all replicas (the RecordSink port); each connects at its first record.

    Ordinary records go through an idempotent one. A refused record breaks the sequence by which that one is recognised,
    and with it every record behind, so what may be refused for its size goes through one that keeps none, each record
    in its own batch: it may produce a record twice, which a caller who produces again after a lost answer does as
    well.
    """

    def __init__(self, kafka: KafkaConfig, limits: Limits) -> None:
        self._kafka = kafka
        self._timeout_s = limits.log_request_timeout_ms / 1_000
        self._ordinary = _Connection(kafka, limits, idempotent=True)
        self._large = _Connection(kafka, limits, idempotent=False)

    async def produce(
        self, topic: str, value: bytes | None, key: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """Return when the record is acknowledged. Raises LogUnavailableError when it is not known to be.

        RecordTooLargeError when the topic takes no record of this size, RecordRefusedError when no topic takes this
        one, TopicUnusableError when this topic takes none as things are.
        """
        problem = topic_problem(topic)
        if problem is not None:
            raise RecordRefusedError(f"no topic can have this name: {problem}")
        try:
            size = len(value or b"") + len(key or b"") + sum(len(n.encode()) + len(content) for n, content in headers)
        except UnicodeEncodeError as e:
            raise RecordRefusedError(f'record for topic "{topic}": the name of a header is not text') from e
        if value is None and key is None:
            key = b""  # aiokafka refuses a record with neither.
        if size < LARGE_RECORD_BYTES:
            try:
                await self._send(self._ordinary, topic, value, key, headers)
            except RecordTooLargeError:
                # Refused was the batch that it was in, maybe for others' sake: only alone it is known to be too large.
                pass
            else:
                return
        try:
            await self._send(self._large, topic, value, key, headers)
        except RecordTooLargeError as e:
            raise RecordTooLargeError(
                f'topic "{topic}" takes no record of {size} bytes; raise its max.message.bytes'
            ) from e

    async def _send(
        self,
        connection: _Connection,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        headers: Sequence[tuple[str, bytes]],
    ) -> None:
        producer = await connection.connected()
        try:
            # Waiting for an acknowledgement is not bounded by the client.
            with kafka_errors_only():
                async with asyncio.timeout(self._timeout_s + ACKNOWLEDGE_MARGIN_S):
                    await producer.find(topic)
                    await producer.send_and_wait(topic, value, key=key, headers=list(headers))
        except UnknownTopicOrPartitionError as e:
            raise TopicUnusableError(f'topic "{topic}" does not exist; create it') from e
        except TopicAuthorizationFailedError as e:
            raise TopicUnusableError(f'topic "{topic}" may not be written to; allow it in the ACLs') from e
        except InvalidTopicError as e:
            raise RecordRefusedError(f'no topic can have the name "{topic}"') from e
        except (MessageSizeTooLargeError, RecordListTooLargeError) as e:
            if connection is self._ordinary:
                await connection.abandon(producer)
            raise RecordTooLargeError(str(e)) from e
        except _ERRORS as e:
            # Whoever called will produce the record again: it must not wait in a buffer as well, nor does an
            # idempotent producer recover from a broken sequence. The next record gets a new producer.
            await connection.abandon(producer)
            text = f'record for topic "{topic}": {describe(e, self._kafka)}'
            if isinstance(e, BrokerResponseError) and not e.retriable:
                # Such as a record without a key for a compacted topic, or one whose schema the broker checks.
                raise TopicUnusableError(text) from e
            raise LogUnavailableError(text) from e

    async def stop(self) -> None:
        """Send what is buffered and disconnect."""
        await self._ordinary.stop()
        await self._large.stop()


class _Connection:
    """A producer while it works; after it was abandoned, another one."""

    def __init__(self, kafka: KafkaConfig, limits: Limits, *, idempotent: bool) -> None:
        self._kafka = kafka
        self._timeout_s = limits.log_request_timeout_ms / 1_000
        self._idempotent = idempotent
        self._settings = connection_settings(kafka, limits)
        self._producer: _Producer | None = None
        self._connecting = asyncio.Lock()

    async def connected(self) -> _Producer:
        """The producer, connected. Raises LogUnavailableError."""
        async with self._connecting:
            if self._producer is None:
                quiet_client_log()
                producer = _Producer(
                    **self._settings,
                    acks="all",
                    enable_idempotence=self._idempotent,
                    max_batch_size=ORDINARY_BATCH_BYTES if self._idempotent else 1,
                    max_request_size=REQUEST_BYTES_MAX,
                )
                try:
                    with kafka_errors_only():
                        async with asyncio.timeout(self._timeout_s):
                            await producer.start()
                except _ERRORS as e:
                    await _close(producer)
                    raise LogUnavailableError(describe(e, self._kafka)) from e
                except BaseException:
                    await _close(producer)
                    raise
                self._producer = producer
            return self._producer

    async def abandon(self, producer: _Producer) -> None:
        """Leave this producer, unless another one has taken its place already."""
        if self._producer is producer:
            self._producer = None
            await producer.abandon()

    async def stop(self) -> None:
        """Send what is buffered and disconnect."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _close(producer)


class _Producer(aiokafka.AIOKafkaProducer):  # type: ignore[misc] # the base class carries no types
    """A producer that can also end without its buffered records, whose broker may be away for good."""

    async def disconnect(self) -> None:
        """Close the connections."""
        await self.client.close()

    async def find(self, topic: str) -> None:
        """Make sure that a topic is known. Raises UnknownTopicOrPartitionError at once when there is none.

        The client itself would ask again for as long as a request may take, in as many lines of its log, and hold the
        lane for that time. A topic that is not there is forgotten again: each later look at any would complain of it.
        """
        cluster = self.client.cluster
        if cluster.partitions_for_topic(topic) is not None:
            return
        self.client.add_topic(topic)
        answered = False
        for _ in range(2):
            # Twice, because the first may be an answer to what was asked before this topic was among the names.
            answered = await self.client.force_metadata_update()
            if cluster.partitions_for_topic(topic) is not None:
                return
        self.client._topics.discard(topic)  # noqa: SLF001 - the client has no way to forget one topic
        if topic in cluster.unauthorized_topics:
            raise TopicAuthorizationFailedError(topic)
        if answered:
            raise UnknownTopicOrPartitionError(topic)
        raise KafkaConnectionError("no broker lists its topics")

    async def abandon(self) -> None:
        """Disconnect. Calls that wait for an acknowledgement run into their own bound."""
        self._closed = True
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                try:
                    with kafka_errors_only():
                        await self._sender.close()
                finally:
                    await self.disconnect()
        except _ERRORS as e:
            _log.debug("abandoning a Kafka producer: %s", e)


async def _close(client: Any) -> None:
    """Stop an aiokafka client.

    One that cannot even stop has nothing more to say than what was raised before.
    """
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            try:
                with kafka_errors_only():
                    await client.stop()
            finally:
                # What broke off in the middle leaves its connections open.
                await client.disconnect()
    except _ERRORS as e:
        _log.debug("closing a Kafka client: %s", e)


async def _watch_topics(membership: Membership) -> None:
    """Notice recreated topics, and hand over partitions that had to wait, indefinitely."""
    while True:
        await asyncio.sleep(TOPIC_RETRY_INTERVAL_S if membership.waits else TOPIC_CHECK_INTERVAL_S)
        try:
            with kafka_errors_only():
                await membership.check()
                await membership.learn_bounds()
        except Exception as e:  # noqa: BLE001 - whatever it is, partitions that wait must be asked about again
            # Reading and committing report an absent broker; here it only means to ask again.
            _log.debug("asking for topic ids and offsets: %s", e)


def _record(tp: Any, fetched: Fetched, topic_id: str) -> LogRecord:
    offset, timestamp_ms, key, value, headers, unreadable = fetched
    # A header may have no value at all in Kafka; nobody tells that from an empty one.
    named = tuple([(name, content or b"") for name, content in headers]) if headers else ()
    return LogRecord(tp.topic, tp.partition, offset, timestamp_ms, key, value, named, topic_id, unreadable)
