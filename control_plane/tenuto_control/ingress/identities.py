"""Ids in paths: of invocations and awakeables, as tenuto makes them and in no other form.

Owns their reading and its errors. Does not own how ids are made (`tenuto.protocol.ids`).

An id names the record it leads to. One that tenuto never made may name a record that no table can hold, and asking for
that would fail as if the control plane were at fault.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from tenuto.protocol.ids import AwakeableId, InvocationId, check_key
from tenuto.protocol.limits import TARGET_NAME_BYTES_MAX
from tenuto.protocol.texts import problem_of_name
from tenuto_control.ingress import paths
from tenuto_control.ingress.problems import RefusedError

NONCE_BYTES_MAX: Final = 255
"""Longest last part of an invocation's id: those that are made take less than half of it."""


def invocation_in(request: Request) -> str:
    """The invocation's id in the path. Raises RefusedError (400) when it is none."""
    text = paths.decode_segment(request.path_params["id"])
    try:
        found = InvocationId.parse(text)
        proper = str(found) == text and _is_proper(found)
    except ValueError:
        proper = False
    if not proper:
        raise RefusedError("this is not an invocation id; one begins with inv_ and is given by /call and /send")
    return text


def awakeable_in(request: Request) -> str:
    """The awakeable's id in the path. Raises RefusedError (400) when it is none."""
    text = paths.decode_segment(request.path_params["id"])
    try:
        found = AwakeableId.parse(text)
        proper = str(found) == text and _is_proper(found.invocation)
    except ValueError:
        proper = False
    if not proper:
        raise RefusedError("this is not an awakeable id; one begins with awk_ and is made by the handler that waits")
    return text


def _is_proper(invocation: InvocationId) -> bool:
    """Whether an invocation may be of this id. Raises ValueError for a key that can be none."""
    service, key = invocation.lane
    check_key(service, key)
    return not problem_of_name(service, TARGET_NAME_BYTES_MAX) and not problem_of_name(
        invocation.nonce, NONCE_BYTES_MAX
    )
