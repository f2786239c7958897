"""`tenuto call SERVICE [KEY] HANDLER [BODY]`: calls a handler of the running project and waits for its result.

Owns parsing words into a call. Which of them is the key depends on the service, so the control plane is asked first.
Does not own the API.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tenuto_cli import addresses, http
from tenuto_cli.parsing import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Parser, UsageError, did_you_mean

VIRTUAL_OBJECT: Final = "virtual object"
UNAVAILABLE: Final = 503
REPEATABLE: Final = "; a call with --idempotency-key KEY can be repeated safely"


@dataclass(frozen=True, slots=True)
class Call:
    """A call. `key` is None for a service, `body` for a handler without input."""

    service: str
    key: str | None
    handler: str
    body: str | None

    def path(self, way: str) -> str:
        """The path of the request; `way` is `call` or `send`."""
        key = [] if self.key is None else [self.key]
        return http.segments(way, self.service, *key, self.handler)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = Parser(
        prog="tenuto call",
        usage="tenuto call SERVICE [KEY] HANDLER [BODY] [options]",
        description="Call a handler and print its result. A virtual object needs a KEY, a service has none. BODY is "
        "JSON; other text is sent as a string, unless it begins like an object or a list. @FILE reads BODY from a "
        "file, - from standard input.",
    )
    made.add_argument("words", nargs="+", metavar="SERVICE [KEY] HANDLER [BODY]", help="the handler, and its input")
    made.add_argument("--send", action="store_true", help="send a message instead of waiting for a result")
    made.add_argument(
        "--delay", metavar="DURATION", help="with --send: deliver it after this time, such as 5s, 10m or 2h"
    )
    made.add_argument("--text", action="store_true", help="send BODY as a string, even if it looks like JSON")
    made.add_argument("--idempotency-key", metavar="KEY", help="requests with the same key are one invocation")
    made.add_argument("--header", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    made.add_argument("--url", help="address of the control plane; default: that of the running tenuto dev")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status: 1 when the handler fails, 2 for a mistake."""
    options = parser().parse_args(arguments)
    try:
        _see_that_they_fit(options)
        headers = headers_of(options.header)
        base = addresses.ingress(options.url)
        call = understood(options.words, http.listing(base))
        answer = _asked(base, call, options, headers)
    except UsageError as error:
        print(f"tenuto call: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if not answer.ok:
        way = REPEATABLE if answer.status == UNAVAILABLE and options.idempotency_key is None else ""
        said = f"{call.service}/{call.handler}: {answer.problem()} ({answer.status}){way}"
        print(f"tenuto call: {said}", file=sys.stderr)
        return EXIT_FAILED
    if answer.body and sys.stdout is not None:
        sys.stdout.flush()
        sys.stdout.buffer.write(answer.body.rstrip(b"\n") + b"\n")
    return 0


def _see_that_they_fit(options: argparse.Namespace) -> None:
    if options.delay and not options.send:
        raise UsageError("--delay needs --send: a delayed call has no result to wait for")


def understood(words: Sequence[str], services: Mapping[str, Mapping[str, Any]]) -> Call:
    """Parse the words of a command line into a call. Raises UsageError, which lists the existing names."""
    service, *rest = words
    if service not in services:
        raise UsageError(f"there is no service {service!r}; {did_you_mean(service, services)}")
    handlers = [handler["name"] for handler in services[service]["handlers"]]
    keyed = services[service]["kind"] == VIRTUAL_OBJECT
    form = f"tenuto call {service}{' KEY' if keyed else ''} HANDLER [BODY]"
    least = 2 if keyed else 1
    if len(rest) < least or len(rest) > least + 1:
        what = "is a virtual object" if keyed else "is a service without keys"
        raise UsageError(f"{service} {what}: write {form}; its handlers are {', '.join(handlers)}")
    key, handler, *body = rest if keyed else (None, *rest)
    assert handler is not None, "the words were counted"
    if handler not in handlers:
        raise UsageError(
            f"{service} has no handler {handler!r}; {did_you_mean(handler, handlers)} (the form is {form})"
        )
    return Call(service, key, handler, body[0] if body else None)


def body_of(text: str | None, *, as_text: bool) -> bytes | None:
    """Encode a BODY: JSON unchanged, any other text as a JSON string. Raises UsageError."""
    if text is None:
        return None
    if text == "-":
        text = standard_input()
    elif text.startswith("@") and not as_text:
        try:
            text = Path(text[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{text[1:]} cannot be read: {error}; --text sends a text that begins with @") from error
    if not as_text:
        try:
            json.loads(text)
        except ValueError:
            if text.lstrip()[:1] in {"{", "["}:
                raise UsageError(f"BODY is not JSON: {text[:80]}; --text sends it as a string") from None
        else:
            return encoded(text)
    return json.dumps(text).encode()


def encoded(text: str) -> bytes:
    """Encode text as UTF-8. Raises UsageError for arguments that are not UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{text[:80]!r} is not text: it holds bytes that are not UTF-8") from error


def standard_input() -> str:
    """Read all of standard input. Raises UsageError if it is closed or not text."""
    if sys.stdin is None:
        raise UsageError("standard input is closed: write BODY, or @FILE")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not text: {error}") from error


def headers_of(pairs: Sequence[str]) -> dict[str, str]:
    """Parse headers of the form NAME=VALUE. Raises UsageError."""
    headers: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--header {pair!r}: write NAME=VALUE")
        headers[name] = value
    return headers


def _asked(base: str, call: Call, options: argparse.Namespace, headers: dict[str, str]) -> http.Answer:
    body = body_of(call.body, as_text=options.text)
    if body is not None:
        headers["content-type"] = "application/json"
    if options.idempotency_key is not None:
        headers["idempotency-key"] = options.idempotency_key
    if options.send:
        later = f"?delay={quote(options.delay, safe='')}" if options.delay else ""
        return http.request(base, "POST", call.path("send") + later, body, headers)
    answer = http.request(base, "POST", call.path("call"), body, headers)
    told = False
    while answer.ok and answer.pending and answer.invocation_id:
        if not told:
            told = True
            print(f"tenuto call: {answer.invocation_id} is still running; Ctrl-C leaves it running", file=sys.stderr)
        answer = http.request(base, "GET", http.segments("invocations", answer.invocation_id, "attach"))
    return answer
