"""How a function sends its requests to DynamoDB: by `tenuto.wire`, or by botocore where the environment asks for it.

Owns the choice, and what both take from botocore. Does not own what requests say (`expressions`) or what their errors
mean (`aws_client`, `dynamodb`). Nothing of either client is imported before a sender is opened.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from tenuto.protocol.decoding import bounded
from tenuto.store.aws_client import (
    CLIENT_OPTIONS,
    CaughtRequest,
    UnsupportedDestinationError,
    blocking_client,
    catch_requests,
    certificates,
    destination_of,
    wants_botocore,
)

if TYPE_CHECKING:
    from tenuto.wire.destination import Destination
    from tenuto.wire.dynamodb import WireDynamo
    from tenuto.wire.limits import Timeouts
    from tenuto.wire.sigv4 import Credentials

log = logging.getLogger("tenuto.aws")

PATH: Final = "/"
"""The path of every request to DynamoDB."""


class Sender(Protocol):
    """Sends one request after the other; threads may share it."""

    def send(self, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The document that an operation, such as UpdateItem, is answered with. Raises what `translated` knows."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def open_sender() -> Sender:
    """A sender as the environment says: region, credentials, endpoint, and TENUTO_AWS_CLIENT."""
    session, caught, to = _chosen()
    return BotocoreSender(session, caught) if to is None else WireSender(session, to)


def open_loop_client(connections_max: int) -> WireDynamo | None:
    """The same for requests at the same time, on an event loop; None where botocore is to send them."""
    session, _, to = _chosen()
    if to is None:
        return None
    from tenuto.wire.aio import AsyncClient
    from tenuto.wire.dynamodb import WireDynamo
    from tenuto.wire.limits import DYNAMODB_ANSWER_BYTES_MAX

    http = AsyncClient(
        to,
        _LoopCredentials(session),
        _timeouts(),
        connections_max=connections_max,
        body_bytes_max=DYNAMODB_ANSWER_BYTES_MAX,
    )
    return WireDynamo(http, CLIENT_OPTIONS["user_agent"])


def _chosen() -> tuple[Any, CaughtRequest, Destination | None]:
    """botocore's session, a request of it, and where `tenuto.wire` is to send such requests, if it is to."""
    session, client = blocking_client("dynamodb")
    catch_requests(client)
    try:
        caught = _caught(client)
    finally:
        client.close()
    if not wants_botocore():
        try:
            return session, caught, destination_of(session, caught, PATH)
        except UnsupportedDestinationError as error:
            log.warning("requests to DynamoDB are sent by botocore: %s", error)
    return session, caught, None


def _caught(client: Any) -> CaughtRequest:
    try:
        client.describe_limits()
    except CaughtRequest as caught:
        return caught
    raise AssertionError("a client whose requests are caught sends none")


def _timeouts() -> Timeouts:
    from tenuto.wire.limits import Timeouts

    return Timeouts(CLIENT_OPTIONS["connect_timeout"], CLIENT_OPTIONS["read_timeout"])


class WireSender:
    """DynamoDB requests by `tenuto.wire`, under botocore's credentials."""

    def __init__(self, session: Any, to: Destination) -> None:
        from tenuto.wire import services
        from tenuto.wire.blocking import BlockingClient
        from tenuto.wire.limits import DYNAMODB_ANSWER_BYTES_MAX

        self._services = services
        self._base_path = to.base_path
        self._http = BlockingClient(to, _Credentials(session).current, _timeouts(), DYNAMODB_ANSWER_BYTES_MAX)

    def send(self, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See `Sender.send`."""
        services = self._services
        request = services.dynamodb_request(self._base_path, operation, arguments, CLIENT_OPTIONS["user_agent"])
        document: dict[str, Any] = services.dynamodb_answer(operation, self._http.send(request))
        return document

    def close(self) -> None:
        """See `Sender.close`."""
        self._http.close()


class _Credentials:
    """What botocore's session knows, in the form of `tenuto.wire`."""

    def __init__(self, session: Any) -> None:
        from botocore.exceptions import NoCredentialsError

        from tenuto.wire.sigv4 import Credentials

        self._missing = NoCredentialsError
        self._form = Credentials
        self._session = session
        self._known: tuple[Any, Credentials | None] = (None, None)

    def current(self) -> Credentials:
        """The credentials to sign with now; botocore renews them here, before they expire. Raises its errors."""
        held = self._session.get_credentials()
        if held is None:
            raise self._missing
        frozen = held.get_frozen_credentials()
        seen, credentials = self._known
        if credentials is None or frozen != seen:
            credentials = self._form(frozen.access_key, frozen.secret_key, frozen.token)
            self._known = (frozen, credentials)
        return credentials


class _LoopCredentials:
    """The same for a client on an event loop, which looking them up blocks: in Lambda they are variables."""

    def __init__(self, session: Any) -> None:
        self._held = _Credentials(session)

    @property
    def current(self) -> Credentials:
        """See `CredentialSource.current`. Raises botocore's errors."""
        return self._held.current()

    async def renewed(self) -> Credentials:
        """See `CredentialSource.renewed`. Raises botocore's errors."""
        return self._held.current()


_decode = bounded(msgspec.json.Decoder())


class BotocoreSender:
    """DynamoDB requests through botocore's credentials, endpoint rules, signer and connections, and no more of it.

    A botocore client also runs some forty event hooks and walks the service model for each request and response. None
    of that changes these operations, whose arguments are rendered already. The reference that `WireSender` is held to.
    """

    def __init__(self, session: Any, caught: CaughtRequest) -> None:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.httpsession import URLLib3Session
        from botocore.utils import get_environ_proxies

        self._url = caught.url
        self._region = caught.region
        self._session = session
        self._signer = SigV4Auth
        self._request = AWSRequest
        # botocore's stubs narrow what it documents and passes itself: a pair of timeouts, and socket options as tuples.
        settings: dict[str, Any] = {
            "timeout": (CLIENT_OPTIONS["connect_timeout"], CLIENT_OPTIONS["read_timeout"]),
            "verify": certificates(session),
            "proxies": get_environ_proxies(caught.url),
            "max_pool_connections": 1,
            "socket_options": [
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
            ],
        }
        self._http = URLLib3Session(**settings)

    def send(self, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """See `Sender.send`. Raises botocore's exceptions."""
        from botocore.exceptions import ClientError, NoCredentialsError
        from botocore.parsers import ResponseParserError

        credentials = self._session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        headers = {
            "X-Amz-Target": f"DynamoDB_20120810.{operation}",
            "Content-Type": "application/x-amz-json-1.0",
            "User-Agent": CLIENT_OPTIONS["user_agent"],
        }
        body = msgspec.json.encode(arguments)
        request = self._request("POST", self._url, headers=headers, data=body)
        self._signer(credentials.get_frozen_credentials(), "dynamodb", self._region).add_auth(request)
        response = self._http.send(request.prepare())
        try:
            answer = _decode(response.content)
        except msgspec.DecodeError:
            answer = None
        if not isinstance(answer, dict):
            if response.status_code == HTTPStatus.OK:
                raise ResponseParserError(f"{operation} was answered with something that is not a JSON object")
            answer = {"__type": str(response.status_code), "message": response.text}
        if response.status_code != HTTPStatus.OK:
            raise ClientError(_as_error(answer, response.status_code), operation)
        return answer

    def close(self) -> None:
        """See `Sender.close`."""
        self._http.close()


def _as_error(answer: dict[str, Any], status: int) -> Any:
    """An error answer in the shape that botocore gives it."""
    code = str(answer.get("__type", status)).rpartition("#")[2]
    message = answer.get("message") or answer.get("Message") or ""
    return {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}} | (
        {"Item": answer["Item"]} if "Item" in answer else {}
    )
