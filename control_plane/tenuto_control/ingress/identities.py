"""Ids in paths: of invocations and awakeables, as tenuto makes them and in no other form.

Owns their reading and its errors. Does not own how ids are made (`tenuto.protocol.ids`).

An id names the record it leads to. One that tenuto never made may name a record that no table can hold, and asking for
that would fail as if the control plane were at fault.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from tenuto.protocol.ids import AwakeableId, InvocationId, check_key
from tenuto.protocol.limits import NONCE_BYTES_MAX, TARGET_NAME_BYTES_MAX
from tenuto.protocol.texts import problem_of_name
from tenuto_control.ingress import paths
from tenuto_control.ingress.problems import RefusedError


def invocation_in(request: Request) -> str:
    """The invocation's id in the path. Raises RefusedError (400) when it is none."""
    refusal = "this is not an invocation id; one begins with inv_ and is given by /call and /send"
    return _id_in(request, InvocationId.parse, refusal)


def awakeable_in(request: Request) -> str:
    """The awakeable's id in the path. Raises RefusedError (400) when it is none."""
    refusal = "this is not an awakeable id; one begins with awk_ and is made by the handler that waits"
    return _id_in(request, lambda text: AwakeableId.parse(text).invocation, refusal)


def _id_in(request: Request, invocation_of: Callable[[str], InvocationId], refusal: str) -> str:
    text = paths.decode_segment(request.path_params["id"])
    try:
        proper = _is_proper(invocation_of(text))
    except ValueError:
        proper = False
    if not proper:
        raise RefusedError(refusal)
    return text


def _is_proper(invocation: InvocationId) -> bool:
    """Whether an invocation may be of this id. Raises ValueError for a key that can be none."""
    service, key = invocation.lane
    check_key(service, key)
    return not problem_of_name(service, TARGET_NAME_BYTES_MAX) and not problem_of_name(
        invocation.nonce, NONCE_BYTES_MAX
    )
