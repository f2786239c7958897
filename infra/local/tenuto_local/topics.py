"""Creating Kafka topics, and waiting for a broker's coordinator, through the ordinary admin protocol.

Owns no connection beyond one call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tenuto_local.errors import ConfigurationError

if TYPE_CHECKING:
    from aiokafka.admin import AIOKafkaAdminClient

VISIBLE_TIMEOUT_S = 10.0
COORDINATOR_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.02


async def create_topics(bootstrap_servers: str, partitions: Mapping[str, int]) -> None:
    """Create topics (name to number of partitions) and wait until they are visible; existing ones are left.

    Raises `ConfigurationError` when the broker refuses one, such as for an invalid name.
    """
    # Imported late: the gateway imports this package, needs no Kafka client, and would start half a second
    # later.
    from aiokafka.admin import NewTopic
    from aiokafka.errors import TopicAlreadyExistsError, for_code

    async with _admin(bootstrap_servers) as admin:
        wanted = [NewTopic(name, num_partitions=count, replication_factor=1) for name, count in partitions.items()]
        response = await admin.create_topics(wanted)
        for name, code, *detail in response.topic_errors:
            if code not in (0, TopicAlreadyExistsError.errno):
                reason = next((str(text) for text in detail if text), for_code(code).__name__)
                raise ConfigurationError(f"topic {name!r} could not be created: {reason}")
        await _wait_visible(admin, set(partitions))


async def wait_coordinator(bootstrap_servers: str, group: str) -> None:
    """Wait until consumers of `group` can join: the first to ask makes a fresh broker create its offsets topic.

    Gives up silently after 10 s: the consumer itself keeps asking.
    """
    from aiokafka.errors import KafkaError

    async with _admin(bootstrap_servers) as admin:
        deadline = time.monotonic() + COORDINATOR_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                await admin.find_coordinator(group)
            except KafkaError:
                await asyncio.sleep(POLL_INTERVAL_S)
            else:
                return


@asynccontextmanager
async def _admin(bootstrap_servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client of the broker. Raises `ConfigurationError` when the broker does not answer, or stops answering."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await admin.start()
        yield admin
    except (KafkaError, OSError) as e:
        raise ConfigurationError(
            f"Kafka at {bootstrap_servers} does not answer ({type(e).__name__}): is the broker running, and is its "
            "address right?"
        ) from e
    finally:
        await admin.close()


async def _wait_visible(admin: AIOKafkaAdminClient, names: set[str]) -> None:
    deadline = time.monotonic() + VISIBLE_TIMEOUT_S
    while not names <= set(await admin.list_topics()):
        if time.monotonic() > deadline:
            raise ConfigurationError(f"topics {sorted(names)} did not appear within {VISIBLE_TIMEOUT_S:.0f} s")
        await asyncio.sleep(POLL_INTERVAL_S)
