"""Checks of arguments: of every context method, and of every option when it is constructed.

Owns the rule that an invalid value is refused at the call, with an error that names handler, method and argument and
shows the correct form. Does not own values (serdes check those) or the rule for keys (`protocol.ids.check_key`, which
the control plane uses too).

The errors:

    TypeError              the wrong type, or the wrong method for a handler: a mistake in the code. The attempt is
                           retried by the handler's policy, nothing is stored, and a corrected deployment fixes it.
    InvalidArgumentError   the right type with an invalid value, such as a key that is too long. The value usually
                           comes from the event, so a retry would not help: it is a TerminalError with status 400.
    ValueError             the same for what is constructed: services, handlers, retry policies, RunOptions.

Terminal errors are never refused (`tenuto.errors`). Messages quote names (of steps, state, topics, headers), which
appear in logs anyway, and never keys, ids or values, which may be secret. Imports only the standard library and the
protocol.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from typing import Any, Final, NoReturn

from tenuto import logs
from tenuto.errors import InvalidArgumentError, StateTooLargeError
from tenuto.protocol.durations import DURATION_FORM, milliseconds
from tenuto.protocol.ids import AwakeableId, check_key
from tenuto.protocol.limits import (
    BESIDE_MAX,
    FAILURE_TEXT_BYTES_MAX,
    PAUSE_MS_MAX,
    RETRY_ATTEMPTS_MAX,
    RETRY_FACTOR_MAX,
    SLEEP_MS_MAX,
    STATE_NAME_BYTES_MAX,
    STEP_NAME_BYTES_MAX,
    TARGET_NAME_BYTES_MAX,
    TOPIC_CHARS_MAX,
    VALUE_BYTES_MAX,
)
from tenuto.protocol.texts import cut, encodable, one_line, problem_of_name, type_name

_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]+")
_SHOWN_BYTES_MAX: Final = 80
"""So much of a refused value is shown."""

AS_TEXT: Final = "write it as text, such as str(value)"
HEADERS_FORM: Final = 'give a dict such as {"source": "bank"}, or (name, value) pairs'


def wrong_type(text: str) -> NoReturn:
    """Raise TypeError with the handler at work in front of the text."""
    raise TypeError(cut(where() + text, FAILURE_TEXT_BYTES_MAX))


def invalid(text: str) -> NoReturn:
    """Raise InvalidArgumentError with the handler at work in front of the text."""
    raise InvalidArgumentError(where() + text)


# --- texts -----------------------------------------------------------------------------------------------------------


def text(value: object, what: str, form: str) -> str:
    """A text as exactly a str. Raises TypeError."""
    if type(value) is str:
        return value
    if isinstance(value, str):
        # Encoders refuse some subclasses, and any method of one may be overridden.
        return str.__str__(value)
    wrong_type(f"{what} is text, not {type_name(value)}: {form}")


def step_name(value: object) -> str:
    """The name of a step: 1 to 255 bytes without control characters. Raises TypeError, InvalidArgumentError."""
    name = text(value, "the name of a step", 'ctx.run("pay", pay, order)')
    problem = problem_of_name(name, STEP_NAME_BYTES_MAX)
    if problem is not None:
        invalid(f"ctx.run({shown(name)}, ...): the name of a step {problem}; put details into the arguments")
    return name


def state_name(value: object, method: str) -> str:
    """The name of a state value: 1 to 255 bytes without control characters. Raises TypeError, InvalidArgumentError."""
    name = text(value, f"ctx.{method}: the name of a state value", f'ctx.{method}("balance"{_MORE.get(method, "")})')
    problem = problem_of_name(name, STATE_NAME_BYTES_MAX)
    if problem is not None:
        invalid(
            f"ctx.{method}({shown(name)}): a state name has 1 to {STATE_NAME_BYTES_MAX} bytes and no control "
            f"characters; this one {problem}"
        )
    return name


_MORE: Final = {"set": ", 5"}


def object_key(service: str, value: object) -> str:
    """The key of an object, for a message to it. Raises TypeError, InvalidArgumentError."""
    key = text(value, "ctx.object_send: the key", AS_TEXT)
    try:
        check_key(service, key)
    except ValueError as e:
        invalid(f"ctx.object_send to {service}: {e}")
    return key


def awakeable_id(value: object, method: str) -> str:
    """The id of an awakeable that can exist. Raises TypeError, InvalidArgumentError."""
    what = f"ctx.{method}: the id of an awakeable"
    named = text(value, what, "give the id that ctx.awakeable() returned with its future")
    try:
        lane = AwakeableId.parse(named).invocation.lane
        # Nobody issues an id with such a key; its answer could never be delivered, and would hold this key's outbox.
        check_key(lane.service, lane.key)
    except ValueError:
        invalid(f"{what} begins with awk_ and comes from ctx.awakeable(); this text is not such an id")
    return named


def target_name(value: object, what: str) -> str:
    """The name of a service or handler at its declaration. Raises TypeError, ValueError."""
    name = text(value, what, 'a text such as "orders"')
    # What is not printable could forge lines; a client resolves "." and ".." before it sends a path.
    if problem_of_name(name, TARGET_NAME_BYTES_MAX) or not name.isprintable() or "/" in name or name in {".", ".."}:
        raise ValueError(
            f"{shown(name)} is not a valid {what}: 1 to {TARGET_NAME_BYTES_MAX} bytes of printable characters "
            "without '/'"
        )
    return name


# --- records for topics ----------------------------------------------------------------------------------------------


def topic(value: object) -> str:
    """The name of a Kafka topic, by the broker's rules. Raises TypeError, InvalidArgumentError."""
    name = text(value, "ctx.publish: the topic", 'ctx.publish("orders", value)')
    if not _TOPIC.fullmatch(name) or len(name) > TOPIC_CHARS_MAX or name in {".", ".."}:
        invalid(
            f"ctx.publish: {shown(name)} is not a valid name of a Kafka topic: 1 to {TOPIC_CHARS_MAX} of the "
            "characters a-z A-Z 0-9 . _ - and neither '.' nor '..'"
        )
    return name


def record_key(value: object, to: str) -> bytes | None:
    """The key of a record. Raises TypeError, InvalidArgumentError."""
    return None if value is None else _octets(value, f"ctx.publish to {to}: ", "the key")


def record_headers(value: object, to: str) -> tuple[tuple[str, bytes], ...]:
    """The headers of a record: a mapping, or pairs, since a name may come twice.

    Raises TypeError, InvalidArgumentError.
    """
    if value is None:
        return ()
    what = f"ctx.publish to {to}: "
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Mapping | Iterable):
        wrong_type(f"{what}headers are a mapping or pairs, not {type_name(value)}: {HEADERS_FORM}")
    headers: list[tuple[str, bytes]] = []
    for pair in value.items() if isinstance(value, Mapping) else value:
        if not isinstance(pair, tuple | list) or len(pair) != len(("name", "value")):
            wrong_type(f"{what}headers have a {type_name(pair)} where a pair belongs: {HEADERS_FORM}")
        name = text(pair[0], f"{what}the name of a header", HEADERS_FORM)
        if not name.isascii() and encodable(name) != name:
            invalid(f"{what}the header's name {shown(name)} holds a lone surrogate, which is not Unicode text")
        found = pair[1]
        headers.append((name, found if type(found) is bytes else _octets(found, what, f"the header {shown(name)}")))
    return tuple(headers)


def fitting(size_bytes: int, what: str) -> None:
    """What one message or record may weigh: it shares the head with others. Raises StateTooLargeError."""
    if size_bytes > VALUE_BYTES_MAX:
        raise StateTooLargeError(where() + what, size_bytes, VALUE_BYTES_MAX)


def _octets(value: object, where_to: str, what: str) -> bytes:
    if isinstance(value, bytes):
        return b"".join((value,))
    if not isinstance(value, str):
        wrong_type(f"{where_to}{what} is str or bytes, not {type_name(value)}: {AS_TEXT}, or as bytes")
    try:
        return str.__str__(value).encode()
    except UnicodeEncodeError:
        invalid(f"{where_to}{what} holds a lone surrogate, which is not Unicode text; give it as bytes")


# --- durations and numbers -------------------------------------------------------------------------------------------


def sleep_ms(duration: object) -> int:
    """Milliseconds of a sleep; a time that has passed is over at once. Raises TypeError, InvalidArgumentError."""
    return max(0, _at_most_ms(duration, "ctx.sleep: the duration"))


def delay_ms(delay: object) -> int:
    """Milliseconds until a message is delivered, 0 for None. Raises TypeError, InvalidArgumentError."""
    if delay is None:
        return 0
    delayed = _at_most_ms(delay, "send_delay")
    if delayed < 0:
        invalid("send_delay is negative; give None or 0 for a message that is delivered at once")
    return delayed


def _at_most_ms(duration: object, what: str) -> int:
    try:
        found = milliseconds(duration, what)
    except TypeError as e:
        wrong_type(str(e))
    except ValueError as e:
        invalid(str(e))
    if found > SLEEP_MS_MAX:
        invalid(f"{what} is longer than 100 years: {DURATION_FORM}")
    return found


def interval(duration: object, what: str, *, zero: bool = False) -> timedelta:
    """An interval of a retry policy: above zero (or from it) and at most 365 days. Raises TypeError, ValueError."""
    found = milliseconds(duration, what)
    if found < 0 or (found == 0 and not zero) or found > PAUSE_MS_MAX:
        least = "<=" if zero else "<"
        raise ValueError(f"a retry policy needs 0 {least} {what} <= 365 days: {DURATION_FORM}")
    return timedelta(milliseconds=found)


def attempts(value: object, what: str) -> int | None:
    """A number of attempts; None means without end. Raises TypeError, ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is a whole number or None, not {type_name(value)}: {what}=5")
    if not 1 <= value <= RETRY_ATTEMPTS_MAX:
        raise ValueError(f"{what} is at least 1 and at most {RETRY_ATTEMPTS_MAX:,}, or None: {what}=5")
    return int(value)


def concurrent_keys(value: object) -> int:
    """How many keys an invocation works on at the same time. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"concurrent_keys is a whole number, not {type_name(value)}: concurrent_keys={BESIDE_MAX}")
    if not 1 <= value <= BESIDE_MAX:
        raise ValueError(f"concurrent_keys is at least 1 and at most {BESIDE_MAX}: concurrent_keys={BESIDE_MAX}")
    return int(value)


def factor(value: object, what: str) -> float:
    """The factor by which pauses grow. Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} is a number, not {type_name(value)}: {what}=2.0")
    if not (1 <= value <= RETRY_FACTOR_MAX) or math.isnan(value):
        raise ValueError(f"a retry policy needs 1 <= {what} <= {RETRY_FACTOR_MAX:,}: {what}=2.0")
    return float(value)


def policy(initial: timedelta, longest: timedelta, names: tuple[str, str]) -> None:
    """Two intervals in order. Raises ValueError."""
    if longest < initial:
        raise ValueError(f"a retry policy needs 0 < {names[0]} <= {names[1]}, not {initial} and {longest}")


# --- serdes and futures ----------------------------------------------------------------------------------------------


def serde(value: object) -> None:
    """A serde of the user's. Raises TypeError."""
    if isinstance(value, type):
        raise TypeError(f"serde is an instance, not the class {value.__name__}: serde={value.__name__}()")
    if not all(callable(getattr(value, method, None)) for method in ("serialize", "deserialize")):
        raise TypeError(
            f"serde has the methods serialize(value) -> bytes and deserialize(data), which {type_name(value)} lacks: "
            "serde=BytesSerde()"
        )


def futures(given: Iterable[Any], kind: type, waiter: object, method: str) -> None:
    """Futures of one invocation, for gather and select. The same one may come twice. Raises TypeError."""
    for future in given:
        if not isinstance(future, kind):
            wrong_type(
                f"{method} takes the futures that context methods return, not {type_name(future)}: "
                f"{method}({_FUTURES_FORM.get(method, 'ctx.run(...), ctx.sleep(...)')})"
            )
        if getattr(future, "waiter", None) is not waiter:
            wrong_type(f"{method} was given a future of another invocation or attempt: await each where it was made")


def all_named(unnamed: Collection[Any], method: str) -> None:
    """Futures that were given without a name, where the name tells which one was first. Raises TypeError."""
    if unnamed:
        wrong_type(f"{method} takes each future by a name, which it returns: {method}({_FUTURES_FORM[method]})")


_FUTURES_FORM: Final = {"ctx.select": "answer=future, timeout=ctx.sleep(60)"}


# --- words -----------------------------------------------------------------------------------------------------------


def shown(value: object) -> str:
    """The beginning of what `repr` makes of a value (a text in quotes), on one line and encodable. Never raises."""
    try:
        return cut(one_line(encodable(repr(value))), _SHOWN_BYTES_MAX)
    except Exception:  # noqa: BLE001 - a value of any type may come here, and its `__repr__` raise anything
        return f"<{type_name(value)}>"


def where() -> str:
    """The handler at work, to begin a message with ("orders/place: "); nothing outside of handlers."""
    at_work = logs.current.get()
    if at_work is None:
        return ""
    fields = at_work.log_fields()
    return f"{fields.get('service')}/{fields.get('handler')}: "
