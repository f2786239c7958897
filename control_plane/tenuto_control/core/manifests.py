"""What a function's answer to discovery has to be before it counts, and what the answers of all come to.

Owns both judgements: functions are deployed by others, and one that answers nonsense, or claims what another serves,
changes nothing for the others. Does not own asking (`admin.deployments`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from tenuto.protocol.limits import PAUSE_MS_MAX, TARGET_NAME_BYTES_MAX
from tenuto.protocol.messages import PROTOCOL_VERSION, HandlerManifest, Manifest, RetryPolicy, ServiceManifest
from tenuto.protocol.texts import problem_of_name

FUNCTION_TIMEOUT_MS_MIN: Final = 1_500
"""Below this a function would hand its invocations on indefinitely: it starts nothing in its last half second."""

FUNCTION_TIMEOUT_MS_MAX: Final = 3_600_000
"""Far above the longest timeout of a function (AWS Lambda quotas: 900 s). A lease lasts as long as a timeout."""

MANIFEST_BYTES_MAX: Final = 1_048_576
"""Largest answer to discovery: thousands of handlers."""

SERVICES_MAX: Final = 1_000
HANDLERS_MAX: Final = 1_000
"""So many services may one function serve, and so many handlers may each have."""


def name_is_possible(name: str) -> bool:
    """Whether a service or a handler can have a name: the SDK refuses every other one where it is declared."""
    if not name.isprintable() or problem_of_name(name, TARGET_NAME_BYTES_MAX) is not None:
        return False
    return "/" not in name and name not in {".", ".."}


def manifest_problem(manifest: Manifest) -> str | None:
    """Why a manifest cannot count, as the end of a sentence about its function; None when it can.

    The text quotes nothing of what the function sent.
    """
    if manifest.version != PROTOCOL_VERSION:
        return f"speaks another protocol than this control plane's {PROTOCOL_VERSION}: deploy both alike"
    if manifest.timeout_ms < FUNCTION_TIMEOUT_MS_MIN:
        return (
            f"has a timeout that leaves {max(0, manifest.timeout_ms):,} ms, too little to claim, step and commit in; "
            "give it 3 seconds or more"
        )
    if manifest.timeout_ms > FUNCTION_TIMEOUT_MS_MAX:
        return "names a timeout that no function can have"
    if len(manifest.services) > SERVICES_MAX:
        return f"serves more than {SERVICES_MAX:,} services"
    if len({service.name for service in manifest.services}) < len(manifest.services):
        return "names a service twice"
    return next(filter(None, map(_service_problem, manifest.services)), None)


def _service_problem(service: ServiceManifest) -> str | None:
    names = [service.name, *(handler.name for handler in service.handlers)]
    if len(service.handlers) > HANDLERS_MAX:
        return f"has a service of more than {HANDLERS_MAX:,} handlers"
    if not all(map(name_is_possible, names)):
        return "has a service or a handler of a name that cannot be"
    if len(set(names[1:])) < len(names) - 1:
        return "names a handler of a service twice"
    if any((handler.kind == "stateless") == service.keyed for handler in service.handlers):
        return "has a handler of a kind that its service cannot have"
    return None if all(map(_policy_is_possible, service.handlers)) else "has a retry policy that cannot be"


def _policy_is_possible(handler: HandlerManifest) -> bool:
    policy: RetryPolicy = handler.retry
    pauses = 0 <= policy.initial_ms <= PAUSE_MS_MAX and 0 <= policy.max_ms <= PAUSE_MS_MAX
    return pauses and math.isfinite(policy.factor) and (policy.max_attempts is None or policy.max_attempts > 0)


# --- what the answers of all come to ---------------------------------------------------------------------------------


class Known(Struct, frozen=True):
    """What is in force of each function, by its name, and why that is not its last answer, where it is not."""

    manifests: Mapping[str, Manifest]
    problems: Mapping[str, str]


def in_force(known: Mapping[str, Manifest], answers: Mapping[str, Manifest | str]) -> Known:
    """What counts after all functions were asked; an answer that cannot count is the text that says why.

    A service is its function's until that one gives it up. Of several that begin to claim one, the first in `answers`
    has it. Of a function that claims what is another's, nothing new counts.
    """
    problems = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
    # One for each round: in the last one, nothing but what was known before is left, and that does not clash.
    for _ in answers:
        manifests = _manifests(known, answers, problems)
        clash = _clash(known, manifests)
        if clash is None:
            break
        loser, owner = clash
        problems[loser] = f"claims a service that [functions.{owner}] serves: rename it, or remove one of the two"
    return Known(_manifests(known, answers, problems), problems)


def _manifests(
    known: Mapping[str, Manifest], answers: Mapping[str, Manifest | str], problems: Mapping[str, str]
) -> dict[str, Manifest]:
    """What each function serves, in the order of `answers`: as before, where its answer does not count."""
    manifests: dict[str, Manifest] = {}
    for name, answer in answers.items():
        before = known.get(name)
        counts = not isinstance(answer, str) and name not in problems and answer != before
        manifest = answer if counts else before
        if isinstance(manifest, Manifest):
            manifests[name] = manifest
    return manifests


def _clash(known: Mapping[str, Manifest], manifests: Mapping[str, Manifest]) -> tuple[str, str] | None:
    """A function that claims a service of another, and that one."""
    owners: dict[str, str] = {}
    for name, manifest in manifests.items():
        for service in manifest.services:
            first = owners.setdefault(service.name, name)
            if first != name:
                served = manifest is known.get(name) or serves(known.get(name), service.name)
                return (first, name) if served else (name, first)
    return None


def serves(manifest: Manifest | None, service: str) -> bool:
    """Whether a service is among those of a manifest, if there is one."""
    return manifest is not None and any(one.name == service for one in manifest.services)
