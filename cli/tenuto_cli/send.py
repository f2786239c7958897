"""`tenuto send TOPIC KEY VALUE`: sends records to a topic of the running project, or of any broker.

Owns the command line and the sending. Does not own the form of records (`records`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from tenuto_cli import addresses
from tenuto_cli.parsing import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Parser, UsageError, did_you_mean, positive
from tenuto_cli.records import Record, headers_of, not_json, of_lines, repeated

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

REQUEST_TIMEOUT_MS: Final = 10_000
IN_FLIGHT_MAX: Final = 1_000
STANDARD_INPUT: Final = "-"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = Parser(
        prog="tenuto send",
        description="Send a record to a topic. --file FILE sends one record for each line KEY:VALUE instead.",
    )
    made.add_argument("topic", metavar="TOPIC", help="a topic that exists")
    made.add_argument("key", nargs="?", metavar="KEY", help="the record's key, as text")
    made.add_argument("value", nargs="?", metavar="VALUE", help="its value: handlers take JSON, such as '\"tea\"'")
    made.add_argument("--file", metavar="FILE", help="file with one record KEY:VALUE per line; - is standard input")
    made.add_argument(
        "--separator", default=":", metavar="TEXT", help="what separates key and value in --file; default: a colon"
    )
    made.add_argument(
        "--count", type=positive, default=1, metavar="N", help="send N records; {n} in KEY and VALUE is 1 to N"
    )
    made.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    made.add_argument("--null", action="store_true", help="send a record without a value (a tombstone)")
    made.add_argument("--kafka", metavar="HOST:PORT", help="the broker; default: that of the running tenuto dev")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status: 1 when the broker refuses, 2 for a mistake."""
    options = parser().parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        records = wanted(options)
        print(asyncio.run(_send(addresses.brokers(options.kafka), options.topic, records)))
    except UsageError as error:
        print(f"tenuto send: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"tenuto send: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def wanted(options: argparse.Namespace) -> Iterator[Record]:
    """Return the records that a command line describes. Raises UsageError."""
    headers = headers_of(options.header)
    if options.file is not None:
        if options.key is not None or options.count != 1:
            raise UsageError("--file contains keys and values: leave out KEY, VALUE and --count")
        if options.file != STANDARD_INPUT:
            # Once to see that each line is a record, so that a mistake in one sends nothing.
            deque(of_lines(_lines(options.file), options.separator, headers), maxlen=0)
        return _doubted(of_lines(_lines(options.file), options.separator, headers))
    if options.key is None or (options.value is None) is not options.null:
        raise UsageError("write TOPIC KEY VALUE, TOPIC KEY --null, or TOPIC --file FILE")
    return _doubted_once(Record(options.key, options.value, headers), options.count)


def _doubted_once(record: Record, count: int) -> Iterator[Record]:
    """The records of a command line, after a note about a value that is not JSON: once they are about to be sent."""
    instead = not_json(record.value, in_shell=True)
    if instead is not None:
        _note("VALUE", instead)
    yield from repeated(record, count)


def _doubted(numbered: Iterable[tuple[int, Record]]) -> Iterator[Record]:
    """The records of a file, with a note about the first value that is not JSON."""
    noted = False
    for number, record in numbered:
        if not noted and (instead := not_json(record.value, in_shell=False)) is not None:
            noted = True
            _note(f"line {number}: the value", instead)
        yield record


def _note(what: str, instead: str) -> None:
    """Say that a value is not JSON. It is sent nevertheless, since a record may be any text."""
    print(f"tenuto send: note: {what} is not JSON, and is sent unchanged ({instead})", file=sys.stderr)


def _lines(name: str) -> Iterator[str]:
    if name == STANDARD_INPUT and sys.stdin is None:
        raise UsageError("standard input is closed: name a file with --file")
    try:
        if name == STANDARD_INPUT:
            yield from sys.stdin
            return
        with open(name, encoding="utf-8") as file:  # noqa: PTH123 - the name is a person's, as it was written
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        what = "standard input" if name == STANDARD_INPUT else name
        raise UsageError(f"{what} cannot be read: {error}") from error


@contextlib.asynccontextmanager
async def _producer(brokers: str) -> AsyncIterator[AIOKafkaProducer]:
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import KafkaError

    producer = AIOKafkaProducer(bootstrap_servers=brokers, acks="all", request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await producer.start()
    except KafkaError as error:
        await producer.stop()
        raise UsageError(f"{brokers} does not answer: {type(error).__name__}; does `tenuto dev` run?") from error
    try:
        yield producer
    finally:
        await producer.stop()


async def _send(brokers: str, topic: str, records: Iterator[Record]) -> str:
    """Send them; the line that says where the last one is. Raises UsageError."""
    from aiokafka.errors import KafkaError

    async with _producer(brokers) as producer:
        await check_topic(brokers, topic)
        sent, last, waiting = 0, None, []
        try:
            for record in records:
                value = None if record.value is None else record.value.encode()
                waiting.append(await producer.send(topic, value, record.key.encode(), headers=list(record.headers)))
                sent += 1
                if len(waiting) >= IN_FLIGHT_MAX:
                    last = (await asyncio.gather(*waiting))[-1]
                    waiting.clear()
            if waiting:
                last = (await asyncio.gather(*waiting))[-1]
        except UsageError as error:
            # Standard input may be endless, so its lines are sent as they come.
            await asyncio.gather(*waiting)
            raise UsageError(f"{error}; {_counted(sent)} before it {'was' if sent == 1 else 'were'} sent") from error
        except KafkaError as error:
            raise UsageError(f"{topic} accepts no records: {type(error).__name__}: {error}") from error
    if last is None:
        return f"sent nothing to {topic}"
    place = f"partition {last.partition} offset {last.offset}"
    return f"sent {_counted(sent)} to {topic}, {place if sent == 1 else f'the last to {place}'}"


def _counted(records: int) -> str:
    return "1 record" if records == 1 else f"{records} records"


async def check_topic(brokers: str, topic: str) -> None:
    """Require that a topic exists. Raises UsageError, which names the closest one."""
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=brokers, request_timeout_ms=REQUEST_TIMEOUT_MS)
    await admin.start()
    try:
        topics = await admin.list_topics()
    finally:
        await admin.close()
    if topic not in topics:
        known = [name for name in topics if not name.startswith("__")]
        raise UsageError(
            f"there is no topic {topic!r}; {did_you_mean(topic, known)} "
            "(tenuto dev creates those that tenuto.toml names)"
        )
