"""A digital twin of a delivery: it follows the rider's position, says when the rest is near, and notices silence."""

from __future__ import annotations

from datetime import timedelta
from math import cos, hypot, radians

import msgspec

from tenuto import ObjectContext, ObjectSharedContext, TerminalError, VirtualObject, aws

NOTICES = "delivery-notices"
NEAR_M = 300
SILENCE = timedelta(minutes=2)


class Place(msgspec.Struct, frozen=True):
    lat: float
    lon: float


class Location(msgspec.Struct, frozen=True):
    """Where a rider was; `at_s` is the time of the measurement, in seconds since the epoch."""

    at_s: int
    place: Place


class Delivery(msgspec.Struct, frozen=True):
    """What is known of a delivery. `number` counts the locations that counted."""

    goal: Place
    last: Location | None = None
    number: int = 0
    near: bool = False
    silent: bool = False


delivery = VirtualObject("delivery")


@delivery.handler()
async def start(ctx: ObjectContext, goal: Place) -> None:
    if await ctx.get("delivery", Delivery) is None:
        ctx.set("delivery", Delivery(goal))


@delivery.handler()
async def moved(ctx: ObjectContext, location: Location) -> None:
    twin = await ctx.get("delivery", Delivery)
    # Phones send late and twice: what is older than the twin's own knowledge changes nothing.
    if twin is None or (twin.last is not None and location.at_s <= twin.last.at_s):
        return
    near = twin.near or metres(location.place, twin.goal) <= NEAR_M
    if near and not twin.near:
        ctx.publish(NOTICES, "near", key=ctx.key)
    if twin.silent:
        ctx.publish(NOTICES, "back", key=ctx.key)
    ctx.set("delivery", Delivery(twin.goal, location, twin.number + 1, near))
    ctx.object_send(still_there, ctx.key, twin.number + 1, send_delay=SILENCE)


@delivery.handler()
async def still_there(ctx: ObjectContext, number: int) -> None:
    twin = await ctx.get("delivery", Delivery)
    # Another number: a location came after the one that sent this message.
    if twin is not None and twin.number == number:
        ctx.set("delivery", msgspec.structs.replace(twin, silent=True))
        ctx.publish(NOTICES, "silent", key=ctx.key)


@delivery.handler()
async def delivered(ctx: ObjectContext) -> None:
    twin = await ctx.get("delivery", Delivery)
    if twin is None:
        raise TerminalError("there is no such delivery", status_code=404)
    ctx.publish(NOTICES, "delivered", key=ctx.key)
    ctx.clear_all()


@delivery.handler(kind="shared")
async def show(ctx: ObjectSharedContext) -> Delivery | None:
    return await ctx.get("delivery", Delivery)


def metres(one: Place, other: Place) -> float:
    """The distance of two places in the same town."""
    north = 111_320 * (one.lat - other.lat)
    east = 111_320 * cos(radians(one.lat)) * (one.lon - other.lon)
    return hypot(north, east)


handler = aws.handler(delivery)
