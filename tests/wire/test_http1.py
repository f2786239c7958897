"""Answers from bytes, however they are cut, and whatever they are.

Owns framing and its bounds. Does not own what a client does when a connection ends (`test_connections`).
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.wire.errors import AnswerTooLargeError, BadAnswerError, LostError, WireError
from tenuto.wire.http1 import Answer, AnswerParser, encode_connect, encode_head
from tenuto.wire.limits import CHUNK_LINE_BYTES_MAX, HEAD_BYTES_MAX, INFORMATIONAL_MAX

BODY_BYTES_MAX = 1_000
OK = b"HTTP/1.1 200 OK\r\n"


def outcome(pieces: list[bytes], *, ends: bool = True) -> Answer | type[WireError] | None:
    """What a parser makes of pieces, and of the end of the connection behind them."""
    parser = AnswerParser(BODY_BYTES_MAX)
    try:
        for piece in pieces:
            if (answer := parser.feed(piece)) is not None:
                return answer
        return parser.eof() if ends else None
    except WireError as error:
        return type(error)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, bytes]:
    """A well-formed answer, its status and its body."""
    status = draw(st.sampled_from([200, 201, 204, 304, 400, 413, 429, 500, 503]))
    body = b"" if status in (204, 304) else draw(st.binary(max_size=200))
    line_end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\n"]))
    informational = draw(st.lists(st.sampled_from([b"HTTP/1.1 100 Continue", b"HTTP/1.1 103"]), max_size=2))
    headers = [b"X-Some: thing", b"Date:Sun, 29 Nov 2026 22:00:00 GMT", b"x-empty:"][: draw(st.integers(0, 3))]
    framing = draw(st.sampled_from(["length", "chunked", "close"])) if status not in (204, 304) else "length"
    match framing:
        case "length":
            headers.append(b"Content-Length: %d" % len(body))
            framed = body
        case "chunked":
            headers.append(b"Transfer-Encoding: Chunked")
            cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
            chunks = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if b > a]
            extension = draw(st.sampled_from([b"", b";a=b"]))
            framed = b"".join(b"%X%b%b%b%b" % (len(c), extension, line_end, c, line_end) for c in chunks)
            trailers = draw(st.sampled_from([b"", b"x-sum: 1" + line_end]))
            framed += b"0" + line_end + trailers + line_end
        case _:
            framed = body
    head = line_end.join([b"HTTP/1.1 %d Whatever it says" % status, *headers, b"", b""])
    before = b"".join(line + line_end + line_end for line in informational)
    return before + head + framed, status, body


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """The data in pieces."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if b > a]


@given(answers(), st.data())
def test_an_answer_is_the_same_however_it_is_cut(drawn: tuple[bytes, int, bytes], data: st.DataObject) -> None:
    raw, status, body = drawn
    whole = outcome([raw])
    assert isinstance(whole, Answer)
    assert (whole.status, whole.body) == (status, body)
    assert outcome(data.draw(cut(raw))) == whole
    assert outcome([raw[i : i + 1] for i in range(len(raw))]) == whole


@given(answers(), st.data())
def test_part_of_an_answer_is_never_taken_for_one(drawn: tuple[bytes, int, bytes], data: st.DataObject) -> None:
    raw, _, body = drawn
    if isinstance(found := outcome([raw], ends=False), Answer):
        part = raw[: data.draw(st.integers(0, len(raw) - 1))]
        assert outcome([part]) is LostError
        assert found.body == body


PIECES = st.binary(max_size=40) | st.sampled_from(
    [
        OK,
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"content-length: 5\r\n",
        b"content-length: 99999999999\r\n",
        b"transfer-encoding: chunked\r\n",
        b"\r\n",
        b"5\r\nabcde\r\n",
        b"0\r\n",
        b"ffffffffffffffff\r\n",
        b"HTTP/1.0 200\r\n",
    ]
)


@given(st.lists(PIECES, max_size=8), st.data())
def test_any_bytes_end_in_an_answer_or_a_typed_error(pieces: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(pieces)
    whole, in_pieces = outcome([raw]), outcome(data.draw(cut(raw)))
    if isinstance(whole, Answer):
        assert isinstance(in_pieces, Answer)
        # Whether more came behind it in the same piece is all that may differ.
        assert (in_pieces.status, in_pieces.headers, in_pieces.body) == (whole.status, whole.headers, whole.body)
        assert len(whole.body) <= BODY_BYTES_MAX
    else:
        assert in_pieces is whole
        assert whole is not None
        assert issubclass(whole, WireError)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", LostError),
        (b"HTTP", LostError),
        (b"SSH-2.0-OpenSSH_9.6\r\n", BadAnswerError),
        (b"\r\n" + OK, BadAnswerError),
        (b"HTTP/2 200\r\n\r\n", BadAnswerError),
        (b"HTTP/1.1 abc OK\r\n\r\n", BadAnswerError),
        (b"HTTP/1.1 101 Switching\r\n\r\n", BadAnswerError),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * (INFORMATIONAL_MAX + 1), BadAnswerError),
        (OK + b"no colon\r\n\r\n", BadAnswerError),
        (OK + b": no name\r\n\r\n", BadAnswerError),
        (OK + b"a b: name with a space\r\n\r\n", BadAnswerError),
        (OK + b" folded: before any\r\n\r\n", BadAnswerError),
        (OK + b"content-length: -1\r\n\r\n", BadAnswerError),
        (OK + b"content-length: 0x10\r\n\r\n", BadAnswerError),
        (OK + "content-length: ٣\r\n\r\n".encode(), BadAnswerError),
        (OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab", BadAnswerError),
        (OK + b"content-length: 1001\r\n\r\n", AnswerTooLargeError),
        (OK + b"content-length: 5\r\n\r\nabc", LostError),
        (OK + b"transfer-encoding: gzip, chunked\r\n\r\n", BadAnswerError),
        (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", BadAnswerError),
        (OK + b"transfer-encoding: chunked\r\n\r\n-5\r\n", BadAnswerError),
        (OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n", BadAnswerError),
        (OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", LostError),
        (OK + b"transfer-encoding: chunked\r\n\r\n3e9\r\n", AnswerTooLargeError),
        (OK + b"transfer-encoding: chunked\r\n\r\n" + b"1f4\r\n" + b"x" * 500 + b"\r\n1f5\r\n", AnswerTooLargeError),
        (OK + b"transfer-encoding: chunked\r\n\r\n" + b"1;" + b"x" * CHUNK_LINE_BYTES_MAX, BadAnswerError),
        (OK + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * HEAD_BYTES_MAX, BadAnswerError),
        (OK + b"x: " + b"y" * HEAD_BYTES_MAX, BadAnswerError),
        (OK + b"x: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n", BadAnswerError),
        (OK + b"\r\n" + b"x" * (BODY_BYTES_MAX + 1), AnswerTooLargeError),
    ],
    ids=lambda case: repr(case[:50] + case[-6:]) if isinstance(case, bytes) else case.__name__,
)
def test_what_is_no_answer_is_told(raw: bytes, error: type[WireError]) -> None:
    assert outcome([raw]) is error
    assert outcome([raw[i : i + 1] for i in range(len(raw))]) is error


@pytest.mark.parametrize(
    ("raw", "reusable"),
    [
        (OK + b"content-length: 2\r\n\r\nab", True),
        (OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\nab", True),
        (OK + b"content-length: 2\r\nConnection: Keep-Alive\r\n\r\nab", True),
        (OK + b"content-length: 2\r\nConnection: Close\r\n\r\nab", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nab", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nab", True),
        (OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", False),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", True),
        (OK + b"content-length: 2\r\n\r\nab" + OK, False),
        (OK + b"\r\nab", False),
    ],
    ids=lambda case: repr(case[16:]) if isinstance(case, bytes) else str(case),
)
def test_a_connection_is_used_again_only_when_its_answer_has_ended(raw: bytes, *, reusable: bool) -> None:
    found = outcome([raw])
    assert isinstance(found, Answer)
    assert found.body == b"ab"
    assert found.reusable is reusable


def test_headers_are_joined_and_unfolded() -> None:
    found = outcome(
        [OK + b"A: 1\r\nb: x\r\n\t y\r\na:2 \r\nKeep-Alive: timeout=5, max=100\r\ncontent-length: 0\r\n\r\n"]
    )
    assert isinstance(found, Answer)
    assert {name: found.headers[name] for name in ("a", "b")} == {"a": "1, 2", "b": "x y"}
    assert found.idle_s == 5.0


def test_the_consent_of_a_proxy_has_no_body() -> None:
    parser = AnswerParser(BODY_BYTES_MAX, connect=True)
    found = parser.feed(b"HTTP/1.1 200 Connection established\r\ncontent-length: 5\r\n\r\n")
    assert found is not None
    assert found.body == b""


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\rb", "ü"])
def test_a_request_has_no_header_that_the_caller_did_not_name(value: str) -> None:
    with pytest.raises(ValueError, match=r"line break|ascii"):
        encode_head("POST", "/", {"x": value}, 0)
    with pytest.raises(ValueError, match=r"line break|ascii"):
        encode_head("POST", value, {}, 0)
    with pytest.raises(ValueError, match=r"line break|ascii"):
        encode_connect("host:443", value)


def test_a_request_names_its_length() -> None:
    assert (
        encode_head("POST", "/a?b", {"host": "h"}, 3) == b"POST /a?b HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n"
    )
