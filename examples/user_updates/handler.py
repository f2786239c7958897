"""Update a user in three systems: each user's events in order, waiting for profiles that are not ready."""

from __future__ import annotations

from datetime import timedelta

from examples.user_updates.outside import (
    UserUpdate,
    provision_resources,
    set_permissions,
    update_profile,
    verify,
)
from tenuto import ObjectContext, VirtualObject, aws

user_updates = VirtualObject("userUpdates")


@user_updates.handler()
async def update_user_event(ctx: ObjectContext, event: UserUpdate) -> None:
    update = verify(event)
    user_id = await ctx.run("update profile", update_profile, update)
    while user_id is None:
        await ctx.sleep(timedelta(seconds=5))
        user_id = await ctx.run("update profile", update_profile, update)
    role_id = await ctx.run("set permissions", set_permissions, user_id, update)
    await ctx.run("provision resources", provision_resources, user_id, role_id, update)


handler = aws.handler(user_updates)
