"""Kafka's codecs, bounded: no batch takes more memory than it may, however little was sent of it.

Owns inflating up to a number of bytes, and saying that there would be more. Does not own what follows then, nor what
the bytes are (`kafka_batches`).

A producer's few kilobytes can stand for gigabytes, and `max.message.bytes` bounds what is sent alone. So nothing is
inflated first and measured afterwards: gzip ends at its bound, a size that a format declares is looked at before any of
it is inflated, and other formats are inflated into room of that size.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from aiokafka import codec

UNCOMPRESSED: Final = 0
GZIP_WINDOW: Final = 31
"""zlib's way to say that the data have gzip's header and trailer."""

XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
XERIAL_HEADER_BYTES: Final = 16
LENGTH_BYTES: Final = 4
NO_ROOM: Final = "failed to write whole buffer"
"""What cramjam says of output for which there is no room."""


class TooLargeInflatedError(Exception):
    """More would come of it than the bound allows."""


class UnknownCodecError(Exception):
    """No codec has this number. The message says so."""


def inflated(kind: int, body: bytes, bytes_max: int) -> bytes:
    """What a body stands for. Raises TooLargeInflatedError above `bytes_max`, UnknownCodecError, and what codecs do."""
    if kind == UNCOMPRESSED:
        return body
    if kind not in DECODERS:
        raise UnknownCodecError(f"a batch compressed by codec {kind}, which is not known")
    return DECODERS[kind](body, bytes_max)


def _gzip(body: bytes, bytes_max: int) -> bytes:
    """One gzip member after the other, as there may be several; zeros may follow the last."""
    parts: list[bytes] = []
    room = bytes_max
    while True:
        member = zlib.decompressobj(GZIP_WINDOW)
        part = member.decompress(body, room + 1)
        room -= len(part)
        if room < 0:
            raise TooLargeInflatedError
        if not member.eof:
            raise EOFError("compressed data ended before the end-of-stream marker was reached")
        parts.append(part)
        body = member.unused_data.lstrip(b"\0")
        if not body:
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _snappy(body: bytes, bytes_max: int) -> bytes:
    """Each block says how large it is, and the decoder holds it to that."""
    if not codec.has_snappy():
        return bytes(codec.snappy_decode(body))  # It says what is missing.
    if sum(map(_snappy_length, _snappy_blocks(body))) > bytes_max:
        raise TooLargeInflatedError
    return bytes(codec.snappy_decode(body))


def _snappy_blocks(body: bytes) -> Iterator[bytes]:
    """The beginnings of all blocks: of one, unless they are framed as the Java library does."""
    if len(body) <= XERIAL_HEADER_BYTES or not body.startswith(XERIAL_MAGIC):
        yield body[:10]
        return
    at = XERIAL_HEADER_BYTES
    while at + LENGTH_BYTES <= len(body):
        length = int.from_bytes(body[at : at + LENGTH_BYTES], "big", signed=True)
        at += LENGTH_BYTES
        if length < 0:
            raise ValueError(f"a block of {length} bytes")
        yield body[at : at + min(length, 10)]
        at += length


def _snappy_length(block: bytes) -> int:
    """The length before compression, with which a block begins: seven bits in each byte, the lowest first."""
    length = 0
    for place, byte in enumerate(block[:5]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return length
    raise ValueError("a block does not say how long it is")


def _into_room(library: str, name: str) -> Callable[[bytes, int], bytes]:
    """A codec that inflates into room of a size. The system gives the room's memory only as it is written to."""

    def decode(body: bytes, bytes_max: int) -> bytes:
        if codec.cramjam is None:
            return bytes(getattr(codec, library)(body))  # It says what is missing.
        room: Any = mmap.mmap(-1, bytes_max + 1)
        try:
            size = getattr(codec.cramjam, name).decompress_into(body, room)
            if size > bytes_max:
                raise TooLargeInflatedError
            return bytes(room[:size])
        except codec.cramjam.DecompressionError as e:
            if NO_ROOM in str(e):
                raise TooLargeInflatedError from e
            raise
        finally:
            room.close()

    return decode


DECODERS: Mapping[int, Callable[[bytes, int], bytes]] = {
    1: _gzip,
    2: _snappy,
    3: _into_room("lz4_decode", "lz4"),
    4: _into_room("zstd_decode", "zstd"),
}
