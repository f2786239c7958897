"""The payment provider, the restaurant and the drivers.

Owns what they answer, which depends on nothing but the order.
"""

from __future__ import annotations

import logging
import os
from typing import Literal, TypeAlias

from pydantic import BaseModel, PositiveInt

from examples.ledger import DIRECTORY_VARIABLE, Ledger
from tenuto import TerminalError

LEDGER = Ledger("food_order")
logger = logging.getLogger(__name__)

FAR_KM = 20
"""Drivers refuse what is farther away than this."""

REMOTE_KM = 50
"""No driver answers an offer that is farther away than this."""

DriverAnswer: TypeAlias = Literal["accept", "refuse", "silence"]


class Order(BaseModel):
    id: str
    dish: str
    price_cents: PositiveInt
    card: Literal["valid", "declined"] = "valid"
    distance_km: PositiveInt


class Acceptance(BaseModel):
    """What a driver who takes the order sends to the awakeable."""

    driver: str


def take_payment(order: Order) -> str:
    """The payment's id. Raises TerminalError (402) when the card is declined."""
    payment = LEDGER.call("take payment", order.id, order.id, lambda _: f"pay-{order.id}")
    if order.card == "declined":
        raise TerminalError("card declined", status_code=402)
    return payment


def refund(order: Order) -> None:
    """Give the money back."""
    LEDGER.call("refund", order.id, order.id, lambda _: order.price_cents)


def order_preparation(order: Order) -> None:
    """Tell the restaurant to begin."""
    LEDGER.call("order preparation", order.id, order.id, lambda _: order.dish)


def cancel_preparation(order: Order) -> None:
    """Tell the restaurant to stop."""
    LEDGER.call("cancel preparation", order.id, order.id, lambda _: None)


def offer_to_drivers(order: Order, offer: str) -> None:
    """Show the order to drivers, who answer at `/awakeables/{offer}/resolve` or `/reject`."""
    LEDGER.call("offer to drivers", order.id, order.id, lambda _: offer)
    logger.info("order %s is offered to drivers as %s", order.id, offer)


def open_offers() -> dict[str, str]:
    """Order id to the awakeable id that its drivers were given.

    Raises LookupError when the environment does not say where the example keeps its record.
    """
    if not os.environ.get(DIRECTORY_VARIABLE):
        raise LookupError(f"{DIRECTORY_VARIABLE} is not set: paste the export line that `tenuto dev` prints")
    return {c.subject: str(c.answer) for c in LEDGER.calls() if c.system == "offer to drivers"}


def driver_answer(distance_km: int) -> DriverAnswer:
    """What the drivers say to an offer."""
    if distance_km > REMOTE_KM:
        return "silence"
    return "refuse" if distance_km > FAR_KM else "accept"
