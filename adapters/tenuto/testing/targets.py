"""Names of handlers, services and topics in a test, and the errors for unknown ones.

Owns looking them up, the arguments that each kind of handler takes, and subscriptions. Does not own calling anything.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from tenuto.errors import TenutoError
from tenuto.handler import Handler
from tenuto.protocol.ids import check_key
from tenuto.protocol.texts import type_name
from tenuto.service import Service, Services, VirtualObject
from tenuto.testing.errors import HarnessError, NoSuchHandlerError
from tenuto_control.config import ConfigError, load
from tenuto_control.core.routing import Ordering, Subscription


class Targets:
    """What one environment serves. Raises TypeError for anything but services, ValueError for two of one name."""

    def __init__(self, services: Sequence[Service | VirtualObject]) -> None:
        self.services = Services(services)
        if not services:
            raise HarnessError("an environment needs the services under test: Environment(orders)")
        self._by_name = {service.name: service for service in services}
        self._handlers: dict[str, Handler[Any, Any]] = {
            h.target: h for service in services for h in service.handlers.values()
        }

    def handler(self, named: object) -> Handler[Any, Any]:
        """Return a handler, given itself or its name ("orders/place"). Raises NoSuchHandlerError."""
        name = named.target if isinstance(named, Handler) else named
        if not isinstance(name, str):
            form = 'env.call(place, ...) or env.call("orders/place", ...)'
            raise HarnessError(f"a handler is named by itself or as text, not by a {type_name(named)}: {form}")
        found = self._handlers.get(name)
        if found is None:
            raise NoSuchHandlerError(_none("handler", name, self._handlers, "this environment serves"))
        if isinstance(named, Handler) and found is not named:
            raise NoSuchHandlerError(f"{name} of this environment is another handler: was its module imported twice?")
        return found

    def keyed(self, named: Service | VirtualObject | str) -> str:
        """The name of a virtual object. Raises NoSuchHandlerError, HarnessError for a service."""
        name = named if isinstance(named, str) else named.name
        found = self._by_name.get(name)
        if found is None:
            raise NoSuchHandlerError(_none("service", name, self._by_name, "this environment serves"))
        if not found.keyed:
            raise HarnessError(f"{name} is a service, which has no state: only virtual objects have")
        return name

    def require_sendable(self, target: Handler[Any, Any]) -> None:
        """Refuse a handler that takes no messages. Raises HarnessError."""
        if target.kind == "shared":
            raise HarnessError(f"{target.target} is a shared handler, which only reads: env.call it")

    def arguments(self, target: Handler[Any, Any], method: str, given: Sequence[Any]) -> tuple[str | None, Any]:
        """The key and the input that a handler was given. Raises HarnessError."""
        name, rest = target.target, [*given]
        key = None
        form = [repr(name)]
        if target.kind != "stateless":
            form.append('"key"')
        if target.spec.takes_input:
            form.append("input")
        shown = f"env.{method}({', '.join(form)})"
        if target.kind != "stateless":
            if not rest:
                raise HarnessError(f"{name} belongs to a virtual object, so it takes a key: {shown}")
            key = rest.pop(0)
            if not isinstance(key, str):
                raise HarnessError(f"the key of {target.service} is text, not {type_name(key)}: {shown}")
            try:
                check_key(target.service, key)
            except ValueError as e:
                raise HarnessError(f"env.{method} to {name}: {e}") from e
        if len(rest) > int(target.spec.takes_input):
            keys = "belongs to a service, which has no keys, so it"
            kind = keys if target.kind == "stateless" else "belongs to a virtual object and"
            raise HarnessError(f"{name} {kind} takes {len(form) - 1} of these, and was given {len(given)}: {shown}")
        return key, rest[0] if rest else None

    def input_of(self, target: Handler[Any, Any], method: str, argument: Any) -> bytes | None:
        """An input's bytes. Raises HarnessError for one that does not fit the handler's type hint."""
        if argument is None and target.spec.takes_input and not target.spec.nullable:
            raise HarnessError(f"{target.target} needs an input: env.{method}({target.target!r}, ..., input)")
        try:
            return target.encode(argument)
        except TenutoError as e:
            raise HarnessError(f"env.{method}: {e}") from e

    # --- topics -----------------------------------------------------------------------------------------------------

    def subscriptions(
        self, topics: Mapping[str, Handler[Any, Any] | str], config: str | PathLike[str] | None
    ) -> tuple[Subscription, ...]:
        """Which handler takes the records of which topic. Raises HarnessError, NoSuchHandlerError."""
        found = {s.topic: s for s in (() if config is None else self._configured(config))}
        for topic, named in topics.items():
            handler = self.handler(named)
            if handler.kind == "shared":
                raise HarnessError(f"{handler.target} is a shared handler, which takes no events")
            ordering: Ordering = "none" if handler.kind == "stateless" else "key"
            found[topic] = Subscription(topic, handler.service, handler.name, ordering=ordering)
        return tuple(found.values())

    def subscription(self, subscriptions: Iterable[Subscription], topic: str) -> Subscription:
        """The subscription of a topic. Raises NoSuchHandlerError."""
        by_topic = {subscription.topic: subscription for subscription in subscriptions}
        if topic not in by_topic:
            way = 'Environment(..., topics={"orders": place}) or Environment(..., config="tenuto.toml")'
            raise NoSuchHandlerError(
                _none("topic", topic, by_topic, "handlers subscribe to") + f"; subscribe one with {way}"
            )
        return by_topic[topic]

    def _configured(self, config: str | PathLike[str]) -> list[Subscription]:
        """The subscriptions of a tenuto.toml whose target is a service of this environment."""
        try:
            subscriptions = load(os.fspath(config)).subscriptions
        except ConfigError as e:
            raise HarnessError(str(e)) from e
        ours = [subscription for subscription in subscriptions if subscription.service in self._by_name]
        for subscription in ours:
            try:
                self.handler(f"{subscription.service}/{subscription.handler}")
            except NoSuchHandlerError as e:
                raise NoSuchHandlerError(f"{os.fspath(config)}, topic {subscription.topic!r}: {e}") from e
        return ours


def _none(kind: str, name: str, known: Iterable[str], there_are: str) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"no {kind} {name}{hint or f'; {there_are} ' + (', '.join(names) or 'none')}"
