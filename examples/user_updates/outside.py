"""The three systems a user lives in: profiles, permissions, resources.

Owns what they answer. Does not own the order of calls: that is the handler's doing.
"""

from __future__ import annotations

from dataclasses import dataclass

from examples.ledger import Ledger
from tenuto import TerminalError

LEDGER = Ledger("user_updates")

TRIES_UNTIL_READY = 3
"""A user whose name ends in `-new` has a profile only from this try on."""


@dataclass(frozen=True, slots=True)
class UserUpdate:
    """One event: everything a user should be from now on. `version` counts from 1 for each user."""

    user: str
    version: int
    name: str
    permissions: list[str]
    resources: list[str]

    @property
    def id(self) -> str:
        """What the ledger calls this event."""
        return f"{self.user}/{self.version}"


def verify(event: UserUpdate) -> UserUpdate:
    """The event itself. Raises TerminalError (400) when no system could accept it."""
    if not event.name.strip():
        raise TerminalError(f"update {event.id} has no name", status_code=400)
    return event


def update_profile(update: UserUpdate) -> str | None:
    """The user's id, or None while the profile is not ready."""
    ready_after = TRIES_UNTIL_READY - 1 if update.user.endswith("-new") else 0

    def answer(tries_before: int) -> str | None:
        return f"id-{update.user}" if tries_before >= ready_after else None

    return LEDGER.call("profiles", update.user, update.id, answer)


def set_permissions(user_id: str, update: UserUpdate) -> str:
    """The id of the role that holds the permissions."""
    role = f"role-{user_id}-{len(update.permissions)}"
    return LEDGER.call("permissions", update.user, update.id, lambda _: role)


def provision_resources(user_id: str, role_id: str, update: UserUpdate) -> list[str]:
    """The names of what was provisioned."""
    names = [f"{resource}:{user_id}:{role_id}" for resource in update.resources]
    return LEDGER.call("resources", update.user, update.id, lambda _: names)
