"""Deployments: which function serves which service, learnt by asking the functions.

Owns discovery, its repetition, and the check that every subscription has its handler. Does not own invoking (a port).
"""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tenuto.protocol.messages import Discover, Manifest, Rejected, ServiceManifest, decode_outcome, encode
from tenuto.serde import problem_of
from tenuto_control.config import Config, ConfigError
from tenuto_control.core.routing import Subscription
from tenuto_control.ports import FunctionInvoker, FunctionMissingError, InvokeError, Target

log = logging.getLogger("tenuto.deployments")

DISCOVERY_TRIES_MAX = 5
DISCOVERY_PAUSE_S = 1.0
FUNCTION_TIMEOUT_MS_MIN = 1_500
"""Below this a function would hand its invocations on for ever: it starts nothing in its last half second."""

REFRESH_INTERVAL_S = 30.0
"""How often functions are asked again, so that a new version's handlers are seen."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The services that functions serve, and what is wrong, a sentence each."""

    services: tuple[ServiceManifest, ...]
    problems: tuple[str, ...]


class Deployments:
    """The `Targets` of a control plane. Call `discover` before the first `find`."""

    def __init__(self, config: Config, invoker: FunctionInvoker) -> None:
        self._config = config
        self._invoker = invoker
        self._targets: dict[str, Target] = {}
        self._unanswered: tuple[str, ...] = ()

    @property
    def unanswered(self) -> tuple[str, ...]:
        """The functions that have not answered `discover_most`: what they serve is not known, or was known before."""
        return self._unanswered

    def find(self, service: str) -> Target | None:
        """See `Targets.find`."""
        return self._targets.get(service)

    def listed(self) -> Sequence[ServiceManifest]:
        """See `Targets.listed`."""
        return [target.manifest for _, target in sorted(self._targets.items())]

    async def discover(self) -> None:
        """Ask every function. Raises ConfigError when one does not answer, or two serve the same service."""
        manifests = {name: await self._ask(name) for name in self._config.functions}
        found = self._served(manifests)
        check_subscriptions(self._config.subscriptions, {n: t.manifest for n, t in found.items()})
        self._targets, self._unanswered = found, ()

    async def discover_most(self, within_s: float) -> None:
        """Ask every function at once, and go on without those that do not answer in time, or that are gone.

        What was known of them stays. Raises ConfigError when what the others answer contradicts the configuration.
        """
        names = tuple(self._config.functions)
        answers = await asyncio.gather(*(self._ask_within(name, within_s) for name in names))
        manifests = {name: one for name, one in zip(names, answers, strict=True) if one is not None}
        unanswered = tuple(name for name in names if name not in manifests)
        found = self._served(manifests)
        known = {s: t for s, t in self._targets.items() if t.function in unanswered and s not in found} | found
        seen = {service: target.manifest for service, target in known.items()}
        sure = [s for s in self._config.subscriptions if not unanswered or s.service in seen]
        check_subscriptions(sure, seen)
        self._targets, self._unanswered = known, unanswered

    async def _ask_within(self, name: str, within_s: float) -> Manifest | None:
        try:
            async with asyncio.timeout(within_s):
                return await self._ask(name)
        except TimeoutError:
            log.warning("[functions.%s] does not answer discovery in %.0f s; its work waits", name, within_s)
        except ConfigError as e:
            log.warning("%s; its work waits", e)
        return None

    def _served(self, manifests: Mapping[str, Manifest]) -> dict[str, Target]:
        """The services of functions. Raises ConfigError when two serve the same, or one has no time to."""
        found: dict[str, Target] = {}
        for name, manifest in manifests.items():
            if manifest.timeout_ms < FUNCTION_TIMEOUT_MS_MIN:
                raise ConfigError(
                    f"[functions.{name}]: its timeout leaves {manifest.timeout_ms} ms, too little to claim, step and "
                    "commit in; give it 3 seconds or more"
                )
            for service in manifest.services:
                if service.name in found:
                    raise ConfigError(
                        f"service {service.name!r} is served by two functions, {found[service.name].function!r} and "
                        f"{name!r}: rename one of them or remove a [functions] section"
                    )
                concurrency = self._config.functions[name].concurrency
                found[service.name] = Target(name, service, manifest.timeout_ms, concurrency)
        return found

    async def refresh(self) -> None:
        """Ask again at intervals, for ever; what is known stays when a function does not answer."""
        while True:
            await asyncio.sleep(REFRESH_INTERVAL_S)
            try:
                await self.discover()
            except ConfigError as e:
                log.warning("discovery keeps what it knew: %s", e)

    async def survey(self) -> Survey:
        """Ask every function once, and tell everything that is wrong, where `discover` stops at the first."""
        seen: dict[str, ServiceManifest] = {}
        unseen: list[str] = []
        problems: list[str] = []
        for name in self._config.functions:
            try:
                manifest = await self._ask(name, tries=1)
            except ConfigError as e:
                unseen.append(name)
                problems.append(str(e))
                continue
            for service in manifest.services:
                if service.name in seen:
                    problems.append(
                        f"[functions.{name}]: service {service.name!r} is served by another function as well"
                    )
                seen[service.name] = service
        for subscription in self._config.subscriptions:
            if unseen and subscription.service not in seen:
                problems.append(
                    f"subscription of {subscription.topic!r}: {subscription.service}/{subscription.handler} cannot be "
                    f"seen: no function that answers serves it, and {', '.join(unseen)} did not answer"
                )
                continue
            try:
                check_subscriptions([subscription], seen)
            except ConfigError as e:
                problems.append(str(e))
        return Survey(tuple(seen.values()), tuple(problems))

    async def _ask(self, name: str, tries: int = DISCOVERY_TRIES_MAX) -> Manifest:
        last = ""
        for tried in range(tries):
            if tried:
                log.warning("function %s does not answer discovery, asking again: %s", name, last)
                await asyncio.sleep(DISCOVERY_PAUSE_S)
            try:
                answer = decode_outcome(await self._invoker.invoke(name, encode(Discover())))
            except FunctionMissingError as e:
                raise ConfigError(f"[functions.{name}]: {e}; deploy it, or correct its name") from e
            except InvokeError as e:
                last = str(e)
                continue
            except msgspec.DecodeError as e:
                last = problem_of(e)
                continue
            match answer:
                case Manifest():
                    return answer
                case Rejected(failure):
                    raise ConfigError(f"[functions.{name}] refuses discovery: {failure.message}")
                case _:
                    last = f"it answered {type(answer).__name__}"
        raise ConfigError(
            f"[functions.{name}] does not answer discovery: {last}. It has to export a handler made by aws.handler(...)"
        )


def check_subscriptions(subscriptions: Sequence[Subscription], services: Mapping[str, ServiceManifest]) -> None:
    """Raises ConfigError naming the first subscription that cannot work as it stands, and the way out."""
    for subscription in subscriptions:
        wanted = f"{subscription.service}/{subscription.handler}"
        service = services.get(subscription.service)
        handler = next((h for h in service.handlers if h.name == subscription.handler), None) if service else None
        if service is None or handler is None:
            known = [f"{s.name}/{h.name}" for s in services.values() for h in s.handlers]
            near = difflib.get_close_matches(wanted, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"the functions serve {', '.join(sorted(known)) or 'nothing'}"
            )
            raise ConfigError(f"subscription of {subscription.topic!r}: there is no handler {wanted!r}; {hint}")
        if handler.kind == "shared":
            raise ConfigError(
                f"subscription of {subscription.topic!r}: {wanted!r} is a shared handler, which only reads; "
                "events need an exclusive one"
            )
        if service.keyed and subscription.ordering != "key":
            raise ConfigError(
                f"subscription of {subscription.topic!r}: ordering = {subscription.ordering!r} makes up the keys, and "
                f"{subscription.service!r} is a virtual object, whose keys have state: leave `ordering` out, or name a "
                "handler of a service without keys"
            )
