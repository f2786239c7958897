"""The system that reminds people. It takes what it is told, and knows a repetition by its idempotency key."""

from __future__ import annotations

from examples.ledger import Ledger

LEDGER = Ledger("task_reminders")


def remind(task: str, text: str) -> str:
    """Send a reminder. The answer is its number in that system."""
    return LEDGER.call("remind", task, task, lambda number: f"{text} #{number}")
