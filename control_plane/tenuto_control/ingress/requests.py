"""What a request says besides its path: body, headers, wait, delay, idempotency key.

Owns their reading, bounds and defaults. Does not own what becomes of them.
"""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect, Request

from tenuto.protocol.limits import PAYLOAD_BYTES_MAX, STATE_BYTES_MAX
from tenuto.protocol.records import Failed, Failure
from tenuto_control.ingress.delays import parse_delay
from tenuto_control.ingress.problems import RefusedError
from tenuto_control.waiting import Within

BODY_MS_MAX: Final = 30_000
"""How long a body may take to arrive."""

BODY_BYTES_MAX: Final = PAYLOAD_BYTES_MAX * 3 // 4 - 2 * STATE_BYTES_MAX
"""Largest body. In an activation it travels as base64 (4 characters for 3 bytes), beside the lane's head."""

HEADERS_BYTES_MAX: Final = 16_384
"""What the headers passed on to a handler may weigh together: they are stored with the invocation."""

NOTHING_BYTES_MAX: Final = 1_024
"""Largest body of a call to a handler without input: `null`, with space around it."""

IDEMPOTENCY_KEY_BYTES_MAX: Final = 1_024
"""Longest idempotency key."""

UTF8_PIECE_BYTES: Final = 65_536
"""How much of a body is decoded at once, to see whether it can be."""

NAME_CHARACTERS_COMPARED_MAX: Final = 100
"""Names longer than this are not compared with others: nobody mistypes them, and it costs their square."""

_JSON_TYPE: Final = re.compile(r"\s*application/(?:[\w.+-]+\+)?json\s*(?:;.*)?", re.IGNORECASE | re.ASCII)
_WAIT: Final = re.compile(r"wait\s*=\s*(?P<value>.*)", re.IGNORECASE | re.ASCII)
_WAIT_SECONDS_DIGITS_MAX: Final = 9
_LENGTH_DIGITS_MAX: Final = 18

# RFC 9110, section 7.6.1: meant for the next hop alone. So is whatever `connection` names.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Headers are stored with the invocation, and secrets have no place there.
_CREDENTIALS: Final = frozenset({"authorization", "cookie", "x-amz-security-token", "x-api-key"})
# Said to the ingress or about the HTTP message, not to the handler.
_FRAMING: Final = frozenset({"content-length", "expect", "host", "prefer"})
_WITHHELD: Final = _HOP_BY_HOP | _CREDENTIALS | _FRAMING

_any_json: Final = msgspec.json.Decoder(msgspec.Raw)


class _Rejection(msgspec.Struct, forbid_unknown_fields=True):
    message: str


_rejection: Final = msgspec.json.Decoder(_Rejection | str)


async def read_body(
    request: Request,
    limit: int = BODY_BYTES_MAX,
    what: str = "the body of a call",
    too_large: RefusedError | None = None,
) -> bytes | None:
    """The body untouched, None when it is empty. `what` names in an error what may hold `limit` bytes.

    Raises RefusedError: `too_large`, or else 413, over the limit, before all of it is read; 415 or 501 when it is
    encoded; 408 when it does not come; 400 when the content type says JSON and the body is none.
    """
    _refuse_encoded(request)

    def beyond() -> RefusedError:
        return too_large or RefusedError(
            f"{what} may hold {limit:,} bytes: store more elsewhere and send a reference",
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )

    if told_bytes(request.scope) > limit:
        raise beyond()
    body = await _pieces(request, limit, beyond)
    if body and is_json_type(request):
        problem = json_problem(body)
        if problem is not None:
            raise RefusedError(f"the body is not the JSON its content type promises: {problem}")
    return body or None


async def _pieces(request: Request, limit: int, beyond: Callable[[], RefusedError]) -> bytes:
    whole: bytes | bytearray = b""
    more = True
    try:
        with Within(BODY_MS_MAX / 1_000):
            # As `request.stream` does, which is a generator and takes several times as long for the one piece of most.
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                more = message.get("more_body", False)
                piece = message.get("body", b"")
                if len(whole) + len(piece) > limit:
                    raise beyond()
                if not whole:
                    whole = piece
                elif isinstance(whole, bytes):
                    # In one place: millions of pieces of a byte or two would take thirty times as much.
                    whole = bytearray(whole) + piece
                else:
                    whole += piece
    except TimeoutError:
        raise RefusedError(f"the body did not arrive in {BODY_MS_MAX} ms", HTTPStatus.REQUEST_TIMEOUT) from None
    return bytes(whole)


def _refuse_encoded(request: Request) -> None:
    """Nobody decodes a body here, and a handler would take its bytes for the value. Raises RefusedError (415, 501)."""
    for line in request.headers.getlist("transfer-encoding"):
        if line.strip().lower() != "chunked":
            message = "of transfer-encodings only `chunked` alone is understood: send the body as it is"
            raise RefusedError(message, HTTPStatus.NOT_IMPLEMENTED)
    for line in request.headers.getlist("content-encoding"):
        for coding in line.split(","):
            if coding.strip().lower() not in ("", "identity"):
                raise RefusedError(
                    f"content-encoding {coding.strip()[:NAME_CHARACTERS_COMPARED_MAX]!r} is not understood: "
                    "send the body as it is",
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    {"accept-encoding": "identity"},
                )


def told_bytes(scope: Mapping[str, Any]) -> int:
    """What `content-length` announces; 0 when it says nothing that can be used."""
    text: bytes = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(text) if text.isdigit() and len(text) <= _LENGTH_DIGITS_MAX else 0


def is_json_type(request: Request) -> bool:
    """Whether the content type is JSON or one of its `+json` kin."""
    return _is_json(request.headers.get("content-type", ""))


@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    # The same few come with every request.
    return _JSON_TYPE.fullmatch(content_type) is not None


def json_problem(data: bytes) -> str | None:
    """What keeps `data` from being JSON; None when it is."""
    # The decoder looks at the text of strings only when they are asked for.
    broken = _not_utf8(data)
    if broken is not None:
        return f"it is not UTF-8 (byte {broken})"
    try:
        _any_json.decode(data)
    except msgspec.DecodeError as e:
        return str(e)
    except RecursionError:
        return "it is nested too deeply"
    return None


def _not_utf8(data: bytes) -> int | None:
    """Where `data` stops being UTF-8; None when all of it is.

    Its text is made a piece at a time: it may take four times the bytes.
    """
    if data.isascii():
        return None
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(data)
    for start in range(0, len(data), UTF8_PIECE_BYTES):
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(view[start : start + UTF8_PIECE_BYTES], final=start + UTF8_PIECE_BYTES >= len(data))
        except UnicodeDecodeError as e:
            return start - held + e.start
    return None


def rejection(body: bytes | None, *, json: bool) -> Failed:
    """The failure an awakeable is rejected with: `{"message": …}`, a JSON string, or plain text."""
    if body is None:
        return Failed(Failure("the awakeable was rejected"))
    try:
        found = _rejection.decode(body)
    except msgspec.DecodeError as e:
        if json:
            raise RefusedError(f'a rejection is text, or {{"message": "…"}} as JSON: {e}') from None
    else:
        return Failed(Failure(found if isinstance(found, str) else found.message))
    try:
        return Failed(Failure(body.decode()))
    except UnicodeDecodeError:
        raise RefusedError("a rejection's message must be UTF-8 text") from None


def event_headers(request: Request) -> tuple[tuple[str, bytes], ...]:
    """The request's own headers, in order, without what concerns the connection, the ingress or a secret."""
    lines = request.headers.getlist("connection")
    withheld = _WITHHELD
    if lines:
        withheld = withheld | {name.strip().lower() for line in lines for name in line.split(",")}
    texts = [(name.decode("latin-1"), value) for name, value in request.scope["headers"]]
    kept = tuple([(name, bytes(value)) for name, value in texts if name not in withheld])
    if sum([len(name) + len(value) for name, value in kept]) > HEADERS_BYTES_MAX:
        raise RefusedError(
            f"the headers are larger than {HEADERS_BYTES_MAX} bytes: put the data into the body",
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        )
    return kept


def wait_ms(request: Request, limit_ms: int) -> int:
    """How long to wait for a result: the limit, lowered by `prefer: wait=N` (seconds, RFC 7240)."""
    for line in request.headers.getlist("prefer"):
        for preference in line.split(","):
            asked = _WAIT.fullmatch(preference.partition(";")[0].strip())
            if asked is None:
                continue
            text = asked["value"].strip('"')
            if not (text.isascii() and text.isdecimal() and len(text) <= _WAIT_SECONDS_DIGITS_MAX):
                raise RefusedError("`prefer: wait=N` takes whole seconds, such as wait=10")
            return min(limit_ms, int(text) * 1_000)
    return limit_ms


def arrived_ms(request: Request) -> int | None:
    """When API Gateway took the request (milliseconds since the epoch): its 29 seconds count from there.

    `requestContext.timeEpoch` of HTTP APIs and function URLs, `requestTimeEpoch` of REST APIs (API Gateway developer
    guides, "payload format" and "Lambda proxy integration"). None where no gateway tells.
    """
    event = request.scope.get("aws.event")
    context = event.get("requestContext") if isinstance(event, Mapping) else None
    if not isinstance(context, Mapping):
        return None
    for name in ("timeEpoch", "requestTimeEpoch"):
        at_ms = context.get(name)
        if isinstance(at_ms, int) and at_ms > 0:
            return at_ms
    return None


def idempotency_key(request: Request) -> str | None:
    """The idempotency key, if the request has one. Raises RefusedError (400) when it cannot serve as one."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not keys[0] or len(keys[0]) > IDEMPOTENCY_KEY_BYTES_MAX:
        raise RefusedError(f"`idempotency-key` must occur once and hold 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes")
    return keys[0]


def delay_ms(request: Request) -> int:
    """The `delay` parameter in milliseconds, 0 without one. Raises RefusedError (400) on nonsense."""
    delays = request.query_params.getlist("delay")
    if len(delays) > 1:
        raise RefusedError("`delay` is given more than once")
    return parse_delay(delays[0]) if delays else 0


def refuse_unknown_parameters(request: Request, known: Collection[str]) -> None:
    """A mistyped `delay` must not run at once. Raises RefusedError (400)."""
    if not request.scope["query_string"]:
        return
    for name in request.query_params:
        if name not in known:
            hint = suggestion(name, known) or (
                " (a delay needs /send)" if name == "delay" else f" (known: {', '.join(known) or 'none'})"
            )
            raise RefusedError(f"unknown query parameter {name[:NAME_CHARACTERS_COMPARED_MAX]!r}{hint}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """A phrase that names the nearest known name, empty when none is near."""
    if len(name) > NAME_CHARACTERS_COMPARED_MAX:
        return ""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""
