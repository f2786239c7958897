"""Deployments: which function serves which service, learnt by asking the functions.

Owns discovery, its repetition, and the check that every subscription has its handler. Does not own invoking (a port),
nor which answers count (`core.manifests`).
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tenuto.protocol.limits import BESIDE_MAX, POOLED_MAX
from tenuto.protocol.messages import Discover, Manifest, Rejected, ServiceManifest, decode_outcome, encode
from tenuto.serde import problem_of
from tenuto_control.config import Config, ConfigError
from tenuto_control.core.flights import Repeated
from tenuto_control.core.log_fields import said_again, shown
from tenuto_control.core.manifests import MANIFEST_BYTES_MAX, Known, in_force, manifest_problem, serves
from tenuto_control.core.metrics import Metrics, Uncounted
from tenuto_control.core.routing import Subscription
from tenuto_control.ports import FunctionBrokenError, FunctionInvoker, FunctionMissingError, InvokeError, Target

log = logging.getLogger("tenuto.deployments")

DISCOVERY_TRIES_MAX = 5
DISCOVERY_PAUSE_S = 1.0
DISCOVERY_S_MAX = 30.0
"""How long an always-on process waits for functions to say what they serve: several cold starts."""

REFRESH_INTERVAL_S = 30.0
"""How often functions are asked again, so that a new version's handlers are seen."""

UNANSWERED_INTERVAL_S = 5.0
"""The same once an answer did not count; doubled for each further time."""


class DiscoveryError(Exception):
    """A function's answer that does not count. The message is the end of a sentence that begins with its name."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The services that functions serve, and what is wrong, a sentence each."""

    services: tuple[ServiceManifest, ...]
    problems: tuple[str, ...]


class Deployments:
    """The `Targets` of a control plane. Call `discover` before the first `find`."""

    def __init__(self, config: Config, invoker: FunctionInvoker, metrics: Metrics | None = None) -> None:
        self._config = config
        self._invoker = invoker
        self._metrics = metrics or Uncounted()
        self._targets: dict[str, Target] = {}
        self._known: Known | None = None
        self._failing: dict[str, Repeated] = {}
        self._asked = asyncio.Event()

    @property
    def unanswered(self) -> Mapping[str, str]:
        """The functions whose last answer does not count, and why: what they served before, if known, is in force."""
        return {} if self._known is None else self._known.problems

    def find(self, service: str) -> Target | None:
        """See `Targets.find`."""
        return self._targets.get(service)

    def listed(self) -> Sequence[ServiceManifest]:
        """See `Targets.listed`."""
        return [target.manifest for _, target in sorted(self._targets.items())]

    async def discover(self, within_s: float) -> None:
        """Ask every function at once, and continue without the answers that do not come in time, or cannot count.

        What was known of these functions stays in force. Raises ConfigError at the first time, when what all others
        serve contradicts the configuration: later on, that is a deployment's fault, which ends no process.
        """
        names = tuple(self._config.functions)
        told = await asyncio.gather(*(self._ask_within(name, within_s) for name in names))
        answers: dict[str, Manifest | str] = dict(zip(names, told, strict=True))
        known = self._settled({} if self._known is None else self._known.manifests, answers)
        self._known = known
        self._targets = {
            service.name: Target(
                name,
                service,
                manifest.timeout_ms,
                self._config.functions[name].concurrency,
                min(manifest.pools, POOLED_MAX),
                min(manifest.beside, BESIDE_MAX),
            )
            for name, manifest in known.manifests.items()
            for service in manifest.services
        }
        self._tell(known)

    def _settled(self, before: Mapping[str, Manifest], answers: dict[str, Manifest | str]) -> Known:
        """What is in force after these answers. Raises ConfigError as `discover` does."""
        # An answer that contradicts a subscription is no answer: so there is one round for each function at the most.
        while True:
            known = in_force(before, answers)
            contradiction = self._contradiction(known)
            if contradiction is None:
                return known
            service, problem = contradiction
            if self._known is None:
                raise ConfigError(problem)
            to_blame = [
                name
                for name, answer in answers.items()
                if name not in known.problems
                and (serves(known.manifests.get(name), service) or serves(before.get(name), service))
                and answer != before.get(name)
            ]
            if not to_blame:
                return known
            answers |= dict.fromkeys(to_blame, f"contradicts the configuration: {problem}")

    def _contradiction(self, known: Known) -> tuple[str, str] | None:
        """The service of the first subscription that cannot work with what is in force, and why."""
        seen = {service.name: service for one in known.manifests.values() for service in one.services}
        unknown = known.problems.keys() - known.manifests.keys()
        for subscription in self._config.subscriptions:
            if unknown and subscription.service not in seen:
                continue
            try:
                check_subscriptions([subscription], seen)
            except ConfigError as e:
                return subscription.service, str(e)
        return None

    def _tell(self, known: Known) -> None:
        """A line for each function whose answer does not count, less and less often, and one when it does again."""
        self._metrics.sample("FunctionsUnanswered", len(known.problems))
        for name in self._failing.keys() - known.problems.keys():
            log.info("[functions.%s] answers discovery again", name)
        failing = {name: self._failing.get(name, Repeated()).again("") for name in known.problems}
        for name, problem in known.problems.items():
            times = failing[name].times
            if said_again(times):
                then = "what it served before stays in force" if name in known.manifests else "its work waits"
                again = f" ({times} times)" if times > 1 else ""
                log.warning("[functions.%s] %s; %s%s", name, problem, then, again)
        self._failing = failing

    async def _ask_within(self, name: str, within_s: float) -> Manifest | str:
        """A function's manifest, or why its answer does not count, as the end of a sentence about it."""
        try:
            async with asyncio.timeout(within_s):
                return await self._ask(name, quietly=name in self._failing)
        except TimeoutError:
            return f"does not answer discovery in {within_s:.0f} s"
        except DiscoveryError as e:
            return str(e)

    def look_again(self) -> None:
        """Have `refresh` ask the functions at once."""
        self._asked.set()

    async def refresh(self) -> None:
        """Ask again at intervals, and when told to, for ever; what is known stays where a function does not answer."""
        while True:
            rounds = min((said.times for said in self._failing.values()), default=DISCOVERY_TRIES_MAX)
            pause_s = min(REFRESH_INTERVAL_S, UNANSWERED_INTERVAL_S * 2 ** min(rounds, DISCOVERY_TRIES_MAX))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._asked.wait()
            self._asked.clear()
            try:
                await self.discover(DISCOVERY_S_MAX)
            except Exception:
                # No answer leads here; were it so all the same, it would end nothing.
                log.exception("discovery failed; its last result stays in use")

    async def survey(self) -> Survey:
        """Ask every function once, and tell everything that is wrong, where `discover` stops at the first."""
        seen: dict[str, ServiceManifest] = {}
        unseen: list[str] = []
        problems: list[str] = []
        for name in self._config.functions:
            try:
                manifest = await self._ask(name, tries=1)
            except DiscoveryError as e:
                unseen.append(name)
                problems.append(f"[functions.{name}] {e}")
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

    async def _ask(self, name: str, tries: int = DISCOVERY_TRIES_MAX, *, quietly: bool = False) -> Manifest:
        """A function's manifest. Raises DiscoveryError."""
        last = hint = ""
        for tried in range(tries):
            if tried:
                if not quietly:
                    log.warning("function %s does not answer discovery, asking again: %s", name, last)
                await asyncio.sleep(DISCOVERY_PAUSE_S)
            hint = ""
            try:
                answer = await self._invoker.invoke(name, encode(Discover()))
            except FunctionBrokenError as e:
                raise DiscoveryError(f"cannot be asked: {shown(str(e))}; correct its code and deploy it") from e
            except FunctionMissingError as e:
                raise DiscoveryError(f"cannot be asked: {shown(str(e))}; deploy it, or correct its name") from e
            except InvokeError as e:
                last = shown(str(e))
                continue
            except Exception as e:  # noqa: BLE001 - an answer that its driver trips over is one function's
                last = shown(f"asking it failed ({type(e).__name__}: {e})")
                continue
            match _read(answer):
                case Manifest() as manifest:
                    return manifest
                case Rejected(failure):
                    raise DiscoveryError(f"refuses discovery: {shown(failure.message)}")
                case str() as last:
                    # An answer, and not that of a handler of tenuto.
                    hint = ". It has to export a handler made by aws.handler(...)"
        raise DiscoveryError(f"does not answer discovery: {last}{hint}")


def _read(answer: bytes) -> Manifest | Rejected | str:
    """What a function has answered, or why that is nothing. Raises DiscoveryError for a manifest that cannot count."""
    if len(answer) > MANIFEST_BYTES_MAX:
        return f"it answered {len(answer):,} bytes; at most {MANIFEST_BYTES_MAX:,} are possible"
    try:
        outcome = decode_outcome(answer)
    except Exception as e:  # noqa: BLE001 - whatever foreign bytes make of their decoder
        return shown(problem_of(e)) if isinstance(e, msgspec.DecodeError) else type(e).__name__
    match outcome:
        case Manifest():
            problem = manifest_problem(outcome)
            if problem is not None:
                raise DiscoveryError(problem)
            return outcome
        case Rejected():
            return outcome
        case _:
            return f"it answered {type(outcome).__name__}"


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
