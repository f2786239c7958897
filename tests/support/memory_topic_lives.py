"""The in-memory twin of the brokers' word on which life of its topic a partition is in.

Owns what the TopicLives port promises, over `MemoryKafka`. Does not own the topics.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tenuto_control.ports import Life, LogUnavailableError, TopicPartition
from tests.support.memory_kafka import MemoryKafka


class MemoryTopicLives:
    """Answers while `reachable`."""

    def __init__(self, kafka: MemoryKafka) -> None:
        self._kafka = kafka
        self.reachable = True

    async def of(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Life]:
        """See `TopicLives.of`."""
        if not self.reachable:
            raise LogUnavailableError("the brokers do not answer")
        lives: dict[TopicPartition, Life] = {}
        for tp in partitions:
            if tp.partition >= len(self._kafka._topics.get(tp.topic, ())):
                raise LogUnavailableError(f'topic "{tp.topic}" does not exist; create it')
            lives[tp] = Life(self._kafka.topic_id(tp.topic), self._kafka._next_offsets.get(tp, 0))
        return lives
