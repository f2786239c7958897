"""Identifiers: lanes, invocations, awakeables and positions in an inbox.

Owns how names become storage keys (injectively) and how ids are derived (deterministically). Does not own randomness:
whoever needs a random id passes the random part in.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
from collections.abc import Iterable
from typing import NamedTuple

from tenuto.protocol.texts import problem_of_name

URL_SAFE = bytes.maketrans(b"+/", b"-_")

INDEX_DIGITS_MAX = 6
"""Digits of a command's index, with room above the limit of commands."""

SEPARATOR = "\x1f"
"""Joins the parts inside an opaque id; service names cannot hold it, and the key is the last but one part."""

AWAKEABLE_TOKEN_BYTES = 16
"""What of an awakeable's id nobody can guess."""

MAX_KEY_BYTES = 1024
"""Longest object key, in UTF-8 bytes."""

PARTITION_KEY_BYTES_MAX = 2_048
"""Longest partition key (Amazon DynamoDB quotas). Escaping may bring a key of legal length above it."""

CHARACTER_BYTES_MAX = 4
"""What a character takes at most in a partition key: in UTF-8, or escaped."""

DIGEST_CHARACTERS = 24

SOURCES_REMEMBERED_MAX = 1_024
"""Partitions for whose records a digest is begun once."""


class Lane(NamedTuple):
    """One queue of work: a service and a key. Everything of a lane happens in order."""

    service: str
    key: str

    @property
    def pk(self) -> str:
        """The partition key of the lane's records, injective over (service, key)."""
        return f"{_escape(self.service)}/{_escape(self.key)}"

    @classmethod
    def from_pk(cls, pk: str) -> Lane:
        """The lane a partition key stands for. Raises ValueError when it is not one."""
        service, _, key = pk.partition("/")
        return cls(_unescape(service), _unescape(key))


def check_key(service: str, key: str) -> None:
    """The one rule for object keys, wherever they come from: messages, HTTP, Kafka.

    A key is text of 1 to MAX_KEY_BYTES bytes without control characters or lone surrogates (`texts`), and fits, escaped
    and with its service, into a partition key. Raises ValueError with the reason.
    """
    problem = problem_of_name(key, MAX_KEY_BYTES)
    if problem is not None:
        raise ValueError(f"the key {problem}")
    if CHARACTER_BYTES_MAX * (len(service) + 1 + len(key)) <= PARTITION_KEY_BYTES_MAX:
        return
    stored = len(Lane(service, key).pk.encode())
    if stored > PARTITION_KEY_BYTES_MAX:
        raise ValueError(
            f"service and key take {stored} bytes as a partition key; at most {PARTITION_KEY_BYTES_MAX} are possible "
            "('/', '#' and '%' count three times: shorten it)"
        )


class InvocationId(NamedTuple):
    """An invocation's id with the lane it lives in, so that an id alone finds its record."""

    lane: Lane
    nonce: str

    def __str__(self) -> str:
        return "inv_" + _pack(self.lane.service, self.nonce, self.lane.key)

    @classmethod
    def parse(cls, text: str) -> InvocationId:
        """Raises ValueError when `text` is not an invocation id."""
        service, nonce, key = _unpack("inv_", text, 3)
        return cls(Lane(service, key), nonce)


class AwakeableId(NamedTuple):
    """Names one journal slot of one invocation, for whoever will resolve it.

    `token` proves that whoever resolves it was given the id (`awakeable_token`): every caller of a handler is told the
    invocation's id, and from that alone no awakeable's can be made.
    """

    invocation: InvocationId
    slot: str
    token: str

    def __str__(self) -> str:
        inv = self.invocation
        return "awk_" + _pack(inv.lane.service, inv.nonce, self.slot, self.token, inv.lane.key)

    @classmethod
    def parse(cls, text: str) -> AwakeableId:
        """Raises ValueError when `text` is not an awakeable id."""
        service, nonce, slot, token, key = _unpack("awk_", text, 5)
        return cls(InvocationId(Lane(service, key), nonce), slot, token)


def awakeable_token(secret: bytes, slot: str) -> str:
    """128 bits, in hex, that only the run that holds `secret` can make for a slot."""
    return hmac.digest(secret, slot.encode(), "sha256")[:AWAKEABLE_TOKEN_BYTES].hex()


def awakeable_slot(index: int) -> str:
    """The journal slot that an awakeable's result goes to."""
    return f"{index}a"


def command_of_awakeable(slot: str) -> int | None:
    """The index of the awakeable that a slot belongs to; None for a slot that nobody may fill from outside."""
    number = slot.removesuffix("a")
    if number == slot or not (number.isascii() and number.isdigit()) or len(number) > INDEX_DIGITS_MAX:
        return None
    return int(number)


def digest(*parts: str) -> str:
    """24 hex characters that stand for `parts`; equal parts give equal text, on every machine and in every process."""
    return hashlib.sha256(_framed(parts)).hexdigest()[:DIGEST_CHARACTERS]


def _framed(parts: Iterable[str]) -> bytes:
    """Each part behind its length: no other parts give the same bytes."""
    return b"".join([len(data).to_bytes(4, "big") + data for data in map(str.encode, parts)])


def source_of_partition(epoch: str, topic: str, partition: int) -> str:
    """The name under which a lane keeps its watermark for one topic-partition of one subscription epoch."""
    return f"{epoch}|{topic}|{partition}"


def kafka_nonce(epoch: str, topic: str, partition: int, offset: int) -> str:
    """The invocation nonce of a Kafka record: the same record always gives the same invocation."""
    hashed = _hashed(epoch, topic, partition).copy()
    hashed.update(_framed((str(offset),)))
    return f"k{hashed.hexdigest()[:DIGEST_CHARACTERS]}"


@functools.lru_cache(maxsize=SOURCES_REMEMBERED_MAX)
def _hashed(epoch: str, topic: str, partition: int) -> hashlib._Hash:
    """What the records of one partition have in common, for each of which a digest continues it."""
    return hashlib.sha256(_framed((epoch, topic, str(partition))))


def message_nonce(sender: str, command: int) -> str:
    """The invocation nonce of a message: `sender` is the sending invocation's id, `command` its command index."""
    return f"m{digest(sender, str(command))}"


def call_nonce(handler: str, idempotency_key: str) -> str:
    """The invocation nonce of a call with an idempotency key."""
    return f"c{digest(handler, idempotency_key)}"


def out_sequence(ver: int, index: int) -> str:
    """Position of an outgoing message in its lane: text order is sending order."""
    return f"{ver:012d}.{index:06d}"


def offset_position(offset: int) -> str:
    """Inbox position of a spilled Kafka record: text order is offset order."""
    return f"{offset:019d}"


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("/", "%2F").replace("#", "%23")


def _unescape(text: str) -> str:
    return text.replace("%23", "#").replace("%2F", "/").replace("%25", "%")


def _pack(*parts: str) -> str:
    packed = binascii.b2a_base64(SEPARATOR.join(parts).encode(), newline=False)
    return packed.rstrip(b"=").translate(URL_SAFE).decode()


def _unpack(prefix: str, text: str, count: int) -> list[str]:
    if not text.startswith(prefix):
        raise ValueError(f"{text!r} does not start with {prefix!r}")
    body = text[len(prefix) :]
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as e:
        raise ValueError(f"{text!r} is not a well-formed id") from e
    parts = raw.split(SEPARATOR, count - 1)
    if len(parts) != count or prefix + _pack(*parts) != text:
        raise ValueError(f"{text!r} is not a well-formed id")
    return parts
