"""`tenuto tail TOPIC`: shows the records of a topic, from its beginning.

Owns the command line and how a record looks. Does not own Kafka.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any, Final

from tenuto_cli import addresses
from tenuto_cli.parsing import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Parser, UsageError, positive
from tenuto_cli.send import check_topic

QUIET_MS: Final = 700
"""When no record comes for so long, the end is reached."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = Parser(prog="tenuto tail", description="Show the records of a topic, oldest first, and exit.")
    made.add_argument("topic", metavar="TOPIC", help="a topic that exists")
    made.add_argument("--follow", "-f", action="store_true", help="keep waiting for records until Ctrl-C")
    made.add_argument("--count", type=positive, metavar="N", help="exit after N records")
    made.add_argument("--json", action="store_true", help="each record as one line of JSON")
    made.add_argument("--kafka", metavar="HOST:PORT", help="the broker; default: that of the running tenuto dev")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    from aiokafka.errors import KafkaConnectionError, KafkaError

    brokers = ""
    try:
        brokers = addresses.brokers(options.kafka)
        asyncio.run(_tail(brokers, options))
    except UsageError as error:
        print(f"tenuto tail: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except KafkaConnectionError:
        print(f"tenuto tail: {brokers} does not answer; does `tenuto dev` run?", file=sys.stderr)
        return EXIT_USAGE
    except (KafkaError, OSError) as error:
        print(f"tenuto tail: {brokers} failed: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


async def _tail(brokers: str, options: argparse.Namespace) -> None:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    await check_topic(brokers, options.topic)
    consumer = AIOKafkaConsumer(options.topic, bootstrap_servers=brokers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(options.topic, number) for number in consumer.partitions_for_topic(options.topic)]
        await consumer.seek_to_beginning(*partitions)
        shown = 0
        while options.count is None or shown < options.count:
            polled = await consumer.getmany(timeout_ms=QUIET_MS)
            if not polled and not options.follow:
                return
            for record in sorted((r for some in polled.values() for r in some), key=lambda r: r.timestamp):
                print(line_of(record, as_json=options.json), flush=True)
                shown += 1
                if shown == options.count:
                    return
    finally:
        await consumer.stop()


def line_of(record: Any, *, as_json: bool) -> str:
    """Format a record as one line: its place, key, value and headers."""
    key, value = _text(record.key), _text(record.value)
    headers = {name: _text(data) for name, data in record.headers}
    if as_json:
        place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        return json.dumps(place | {"key": key, "value": value, "headers": headers})
    more = "".join(f"  {name}={data}" for name, data in headers.items())
    shown = f"{record.partition}/{record.offset}  {key or '(no key)'}  {'(no value)' if value is None else value}{more}"
    return shown if shown.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode(errors="backslashreplace")
