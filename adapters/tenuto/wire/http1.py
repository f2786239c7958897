"""HTTP/1.1 without I/O: the bytes of requests, and answers from bytes.

Owns the framing of messages on a connection that stays open, and bounds on all that a server may send. Does not own
connections, timeouts, or what an answer means. Source of facts: RFC 9110 and RFC 9112.

An answer is read in phases, each of which consumes from the front of the buffer or waits for more:

    head -> (another head, after 1xx) -> body by length | chunks | everything until the end -> done
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

from msgspec import Struct

from tenuto.wire.errors import AnswerTooLargeError, BadAnswerError, LostError
from tenuto.wire.limits import CHUNK_LINE_BYTES_MAX, HEAD_BYTES_MAX, INFORMATIONAL_MAX

CONTINUE_MIN, SWITCHING, OK, NO_CONTENT, NOT_MODIFIED = 100, 101, 200, 204, 304
REDIRECTS_MIN: Final = 300

_STATUS_LINE: Final = re.compile(r"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: [^\r\n]*)?")
_PREFIX: Final = b"HTTP/1."
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
LENGTH_DIGITS_MAX: Final = 18
_LENGTH: Final = re.compile(rf"[0-9]{{1,{LENGTH_DIGITS_MAX}}}")
_CHUNK_SIZE: Final = re.compile(rb"[0-9a-fA-F]{1,15}")
_KEEP_ALIVE_TIMEOUT: Final = re.compile(r"timeout\s*=\s*([0-9]{1,9})", re.IGNORECASE)


class Answer(Struct, frozen=True):
    """One answer. Names of `headers` are in lower case; values of a name that came several times are joined.

    `reusable` says whether the connection may carry another request, `idle_s` for how long it may rest before, if the
    server says so.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    reusable: bool
    idle_s: float | None = None


def is_refusal(answer: Answer) -> bool:
    """Whether the status is that of an error, or of a redirection, which nothing here follows."""
    return answer.status >= REDIRECTS_MIN


def encode_head(method: str, target: str, headers: Mapping[str, str], length: int) -> bytes:
    """The head of a request. Raises ValueError for what would not be one line each, in ASCII."""
    return encode_lines(method, target, headers) + b"content-length: %d\r\n\r\n" % length


def encode_lines(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The first lines of a head, to be followed by others. Raises ValueError as `encode_head` does."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    head = f"{method} {target} HTTP/1.1\r\n{lines}"
    expected = len(headers) + 1
    if head.count("\n") != expected or head.count("\r") != expected:
        raise ValueError("a header or target that contains a line break")
    return head.encode("ascii")


def encode_connect(authority: str, authorization: str | None) -> bytes:
    """The request to a proxy for a tunnel. Raises as `encode_head` does."""
    headers = {"host": authority}
    if authorization is not None:
        headers["proxy-authorization"] = authorization
    return encode_head("CONNECT", authority, headers, 0)


class AnswerParser:
    """Reads one answer, in whatever pieces it arrives.

    `connect` is for the answer to CONNECT, which has no body when it is a consent.
    """

    __slots__ = (
        "_body",
        "_body_bytes_max",
        "_buffer",
        "_connect",
        "_headers",
        "_informational",
        "_left",
        "_phase",
        "_reusable",
        "_scanned",
        "_status",
        "_trailer_bytes",
    )

    def __init__(self, body_bytes_max: int, *, connect: bool = False) -> None:
        self._body_bytes_max = body_bytes_max
        self._connect = connect
        self._buffer: bytes | bytearray = b""
        self._scanned = 0
        # A function: a bound method would create a reference cycle for every answer.
        self._phase: Callable[[AnswerParser], Answer | None] = AnswerParser._read_head
        self._status = 0
        self._headers: dict[str, str] = {}
        self._reusable = False
        self._informational = 0
        self._left = 0
        self._trailer_bytes = 0
        self._body = bytearray()

    def feed(self, data: bytes) -> Answer | None:
        """The answer once it is complete, None before. Raises BadAnswerError; the parser is of no use after either."""
        if self._buffer:
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += data
        else:
            self._buffer = data
        while True:
            phase = self._phase
            answer = phase(self)
            if answer is not None or self._phase is phase:
                return answer

    @property
    def announced(self) -> int | None:
        """What the body may weigh, by the head of the answer; None until that is complete."""
        if self._phase is AnswerParser._read_head:
            return None
        return self._left if self._phase is AnswerParser._read_length else self._body_bytes_max

    def eof(self) -> Answer:
        """The answer that ends with its connection. Raises LostError when this one does not."""
        if self._phase is not AnswerParser._read_until_end:
            raise LostError("the connection was closed before the end of the answer")
        return self._answer(bytes(self._body), reusable=False)

    # Each phase returns the answer, or moves on to another phase, or returns with nothing changed to wait for more.

    def _read_head(self) -> Answer | None:
        buffer = self._buffer
        if not buffer.startswith(_PREFIX) and not _PREFIX.startswith(bytes(buffer[: len(_PREFIX)])):
            raise BadAnswerError("the answer is not HTTP/1.1")
        found = _END_OF_HEAD.search(buffer, max(0, self._scanned - 2))
        end = len(buffer) if found is None else found.end()
        if end > HEAD_BYTES_MAX:
            raise BadAnswerError(f"the head of the answer is larger than {HEAD_BYTES_MAX:,} bytes")
        if found is None:
            self._scanned = end
            return None
        head = bytes(buffer[: found.start()])
        self._consume(end)
        minor = self._read_lines(head)
        if self._status < OK:
            self._informational += 1
            if self._status == SWITCHING or self._informational > INFORMATIONAL_MAX:
                raise BadAnswerError(f"the answer is status {self._status}, which was not asked for")
            # The same phase again, as the next head may be here already.
            return self._read_head()
        return self._begin_body(minor)

    def _read_lines(self, head: bytes) -> int:
        """Take status and headers from a head; the minor version of the protocol."""
        text = head.decode("latin-1")
        first, *lines = text.split("\r\n")
        if text.count("\n") != len(lines):
            # Some end without the carriage return.
            first, *lines = text.replace("\r\n", "\n").split("\n")
        self._status, minor = _status(first)
        self._headers = _headers(lines)
        return minor

    def _begin_body(self, minor: int) -> Answer | None:
        headers = self._headers
        connection = headers.get("connection", "").lower()
        self._reusable = "close" not in connection if minor >= 1 else "keep-alive" in connection
        if self._status in (NO_CONTENT, NOT_MODIFIED) or (self._connect and self._status < REDIRECTS_MIN):
            return self._answer(b"", reusable=self._reusable)
        coding = headers.get("transfer-encoding", "").strip().lower()
        if coding == "chunked":
            # With a length as well, an intermediary may have framed the answer differently.
            self._reusable = self._reusable and "content-length" not in headers
            self._phase = AnswerParser._read_chunk_size
        elif coding not in ("", "identity"):
            raise BadAnswerError("the answer has a transfer coding that was not asked for")
        elif "content-length" in headers:
            self._left = _length(headers["content-length"])
            self._require_room(self._left)
            self._phase = AnswerParser._read_length
        else:
            self._reusable = False
            self._phase = AnswerParser._read_until_end
        return None

    def _read_length(self) -> Answer | None:
        if len(self._buffer) < self._left:
            return None
        body = bytes(self._buffer[: self._left])
        self._consume(self._left)
        return self._answer(body, reusable=self._reusable)

    def _read_until_end(self) -> Answer | None:
        self._require_room(len(self._body) + len(self._buffer))
        self._body += self._buffer
        self._buffer = b""
        return None

    def _read_chunk_size(self) -> Answer | None:
        line = self._line(CHUNK_LINE_BYTES_MAX)
        if line is None:
            return None
        size = line.partition(b";")[0].strip()
        if _CHUNK_SIZE.fullmatch(size) is None:
            raise BadAnswerError("the answer has a chunk without a size")
        self._left = int(size, 16)
        self._require_room(len(self._body) + self._left)
        self._phase = AnswerParser._read_chunk if self._left else AnswerParser._read_trailers
        return None

    def _read_chunk(self) -> Answer | None:
        # Consumed as it arrives: a chunk may be as large as the whole body.
        taken = min(self._left, len(self._buffer))
        self._body += self._buffer[:taken]
        self._consume(taken)
        self._left -= taken
        if not self._left:
            self._phase = AnswerParser._read_end_of_chunk
        return None

    def _read_end_of_chunk(self) -> Answer | None:
        line = self._line(len(b"\r\n"))
        if line is None:
            return None
        if line:
            raise BadAnswerError("the answer has a chunk that is longer than its size")
        self._phase = AnswerParser._read_chunk_size
        return None

    def _read_trailers(self) -> Answer | None:
        while (line := self._line(HEAD_BYTES_MAX - self._trailer_bytes)) is not None:
            if not line:
                return self._answer(bytes(self._body), reusable=self._reusable)
            self._trailer_bytes += len(line) + 1
        return None

    def _line(self, bytes_max: int) -> bytes | None:
        """The next line without its end, None when it is not complete. Raises BadAnswerError when it is too long."""
        end = self._buffer.find(b"\n")
        if (len(self._buffer) if end < 0 else end + 1) > bytes_max:
            raise BadAnswerError("the answer has a line that is too long")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        self._consume(end + 1)
        return line.removesuffix(b"\r")

    def _consume(self, count: int) -> None:
        if count == len(self._buffer):
            self._buffer = b""
        elif isinstance(self._buffer, bytes):
            self._buffer = self._buffer[count:]
        else:
            # A bytearray gives up its front without moving the rest.
            del self._buffer[:count]
        self._scanned = 0

    def _require_room(self, length: int) -> None:
        if length > self._body_bytes_max:
            raise AnswerTooLargeError(f"the answer is larger than {self._body_bytes_max:,} bytes")

    def _answer(self, body: bytes, *, reusable: bool) -> Answer:
        # Extra bytes would be read as the answer to the next request.
        reusable = reusable and not self._buffer
        told = _KEEP_ALIVE_TIMEOUT.search(self._headers["keep-alive"]) if "keep-alive" in self._headers else None
        return Answer(self._status, self._headers, body, reusable, None if told is None else float(told[1]))


@lru_cache(maxsize=64)
def _status(line: str) -> tuple[int, int]:
    """The status, and the minor version of the protocol. Raises BadAnswerError. The same few come with every answer."""
    matched = _STATUS_LINE.fullmatch(line.removesuffix("\r"))
    if matched is None:
        raise BadAnswerError("the answer has no HTTP status line")
    return int(matched[2]), int(matched[1])


def _headers(lines: list[str]) -> dict[str, str]:
    """Names and values. Raises BadAnswerError for a line that is no header."""
    headers: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[:1] in (" ", "\t"):
            # A folded value, which HTTP once allowed.
            if not name:
                raise BadAnswerError("the answer has a header without a name")
            headers[name] = f"{headers[name]} {line.strip()}"
            continue
        left, colon, right = line.partition(":")
        if not colon:
            raise BadAnswerError("the answer has a line that is not a header")
        name = _name(left)
        value = right.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


@lru_cache(maxsize=256)
def _name(raw: str) -> str:
    """A header's name in lower case. Raises BadAnswerError for what is none. The same few come with every answer."""
    if _TOKEN.fullmatch(raw) is None:
        raise BadAnswerError("the answer has a line that is not a header")
    return raw.lower()


def _length(text: str) -> int:
    """The value of Content-Length, which may have been repeated. Raises BadAnswerError."""
    if len(text) <= LENGTH_DIGITS_MAX and text.isascii() and text.isdigit():
        return int(text)
    values = {part.strip() for part in text.split(",")}
    (value, *others) = values
    if others or _LENGTH.fullmatch(value) is None:
        raise BadAnswerError("the answer has no valid length")
    return int(value)
