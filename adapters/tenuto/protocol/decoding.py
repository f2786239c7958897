"""Decoding of bytes that another process may have written: the one place where depth is bounded.

Owns that a decoder of foreign bytes fails in one way only. Does not own what is decoded (`records`, `messages`, and
whoever has its own form), nor values of users, whose depth serdes judge (`tenuto.serde`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Decoder(Protocol[T_co]):
    """What of msgspec's decoders is used here."""

    def decode(self, buf: Any, /) -> T_co:
        """The value in its encoded form."""
        ...


def bounded(decoder: _Decoder[T]) -> Callable[[bytes], T]:
    """A decoder's `decode` that raises msgspec.DecodeError (a ValueError) whatever the bytes are.

    Values nested deeper than the interpreter lets its stack grow make msgspec raise RecursionError, which no caller
    expects of bad data. Fields that no record has are skipped, and nested like any other.
    """
    decode = decoder.decode

    def decoded(data: bytes) -> T:
        try:
            return decode(data)
        except RecursionError:
            raise msgspec.DecodeError("it is nested too deeply") from None
        except UnicodeDecodeError as e:
            raise msgspec.DecodeError(f"it holds text that is not UTF-8 (byte {e.start})") from None

    return decoded
