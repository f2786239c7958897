"""Join two topics per user, wait a second for late features, and send the profile on."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from tenuto import ObjectContext, ObjectSharedContext, TerminalError, VirtualObject, aws

PROFILES_TOPIC = "enriched-profiles"


class UserProfile(msgspec.Struct):
    id: str
    name: str
    features: list[str] = []


profile = VirtualObject("profile")


@profile.handler()
async def user_event(ctx: ObjectContext, user: UserProfile) -> None:
    ctx.set("user", user)
    ctx.object_send(emit, ctx.key, send_delay=timedelta(seconds=1))


@profile.handler()
async def feature_event(ctx: ObjectContext, feature: str) -> None:
    user = await ctx.get("user", UserProfile)
    if user is None:
        raise TerminalError("user not found", status_code=404)
    user.features.append(feature)
    ctx.set("user", user)


@profile.handler()
async def emit(ctx: ObjectContext) -> None:
    ctx.publish(PROFILES_TOPIC, await ctx.get("user", UserProfile), key=ctx.key)
    ctx.clear_all()


@profile.handler(kind="shared")
async def show(ctx: ObjectSharedContext) -> UserProfile | None:
    return await ctx.get("user", UserProfile)


handler = aws.handler(profile)
