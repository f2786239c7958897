"""AWS clients as both sides use them: their settings, where they send requests, and what their errors mean.

botocore finds endpoints, regions, credentials, certificates and proxies, as for every AWS tool; `tenuto.wire` sends
what is sent often. Owns nothing of a single service's operations. Nothing of botocore is imported before the first use,
so that a function that makes no request does not pay for it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tenuto.store.port import TableRefusedError, TableUnavailableError, UnstorableError
from tenuto.wire.destination import Destination, Proxy, destination
from tenuto.wire.errors import ServiceError, WireError

if TYPE_CHECKING:
    from botocore.loaders import Loader

CONNECT_TIMEOUT_S: Final = 1.0
READ_TIMEOUT_S: Final = 3.0
"""Silence after which a request counts as unanswered; DynamoDB's own answers take milliseconds."""

CONNECTIONS_MAX: Final = 64

CLIENT_OPTIONS: Final[Mapping[str, Any]] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "read_timeout": READ_TIMEOUT_S,
    "max_pool_connections": CONNECTIONS_MAX,
    "tcp_keepalive": True,
    # A silent repetition would meet the effect of the first request and fail its condition.
    "retries": {"total_max_attempts": 1, "mode": "standard"},
    # Each of these three is looked up or computed again for every request otherwise.
    "parameter_validation": False,
    "user_agent": "tenuto",
    "account_id_endpoint_mode": "disabled",
}
"""What to make a client's `Config` (botocore) or `AioConfig` (aiobotocore) from."""

TRANSIENT_CODES: Final = frozenset(
    {
        "InternalServerError",
        "ProvisionedThroughputExceededException",
        "ReplicatedWriteConflictException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)
"""Error codes after which the same request may succeed (DynamoDB's "Error handling", AWS's common errors)."""

DATA_CODES: Final = frozenset(
    {
        "ItemCollectionSizeLimitExceededException",
        "RequestEntityTooLarge",
        "SerializationException",
        "ValidationException",
    }
)
"""Error codes that blame what was sent: the size of an item, key or expression (DynamoDB's "Error handling")."""

MESSAGE_CHARS_MAX: Final = 300
"""How much is shown of a server's own words: a proxy may answer with a whole page."""

PARSERS: Final = frozenset({"aiobotocore.parsers", "botocore.parsers"})
"""Modules that read answers, and expect of them what the service's model says."""

CLIENT_VARIABLE: Final = "TENUTO_AWS_CLIENT"
"""Set to botocore, requests to DynamoDB and Lambda are sent by botocore's own client: for use in case of trouble."""

PROXY_PORT: Final = 80
"""The port of a proxy whose URL names none."""

HTTP_TOO_MANY_REQUESTS: Final = 429
HTTP_SERVER_ERROR_MIN: Final = 500


def blocking_client(service: str) -> tuple[Any, Any]:
    """A botocore session, and a client of it for one service, from the environment as for every AWS tool."""
    # Imported here: some 100 ms that only a function with a durable step should pay.
    import botocore.session
    from botocore.config import Config

    session = botocore.session.Session()
    session.register_component("data_loader", _one_service_loader(service))
    # Lambda sets AWS_REGION, botocore reads AWS_DEFAULT_REGION; None leaves the choice to the profile.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return session, session.create_client(service, region_name=region, config=Config(**CLIENT_OPTIONS))


def wants_botocore() -> bool:
    """Whether the environment asks for botocore's own client in place of `tenuto.wire`.

    Raises ValueError for a value that means nothing.
    """
    wanted = os.environ.get(CLIENT_VARIABLE, "").strip().lower()
    if wanted not in ("", "wire", "botocore"):
        raise ValueError(f"{CLIENT_VARIABLE} is wire or botocore, not {wanted[:MESSAGE_CHARS_MAX]}")
    return wanted == "botocore"


class UnsupportedDestinationError(Exception):
    """An endpoint that botocore can reach and `tenuto.wire` cannot: what it says is why."""


class CaughtRequest(Exception):
    """A request that botocore was about to sign: where it would go, and what it would be signed for."""

    def __init__(self, url: str, service: str, region: str, signature: str) -> None:
        super().__init__(url)
        self.url = url
        self.service = service
        self.region = region
        self.signature = signature


def catch_requests(client: Any) -> None:
    """Have every call of a botocore or aiobotocore client raise CaughtRequest.

    A client's own `meta.endpoint_url` is not where its requests go: it knows neither FIPS endpoints nor the domains of
    all partitions. No credentials are looked up.
    """

    def catch(request: Any, signing_name: str, region_name: str, signature_version: str, **_: Any) -> NoReturn:
        raise CaughtRequest(request.url, signing_name, region_name, signature_version)

    client.meta.events.register_first("before-sign", catch)


def destination_of(session: Any, caught: CaughtRequest, path: str) -> Destination:
    """Where requests like the caught one go. `path` is the end of its path that belongs to the operation.

    `session` is botocore's or aiobotocore's. Raises UnsupportedDestinationError.
    """
    from botocore.httpsession import get_cert_path

    if caught.signature != "v4":
        raise UnsupportedDestinationError(f"requests are signed by {caught.signature}")
    url = caught.url.partition("?")[0].removesuffix(path)
    return destination(
        url,
        service=caught.service,
        region=caught.region,
        ca_bundle=get_cert_path(certificates(session)),
        proxy=_proxy_for(url),
    )


def certificates(session: Any) -> Any:
    """The file or folder of certificates that a session was told to trust; True for botocore's own."""
    return session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True


def _proxy_for(url: str) -> Proxy | None:
    """The proxy that botocore would use for this URL. Raises UnsupportedDestinationError."""
    from urllib.parse import urlsplit

    from botocore.httpsession import ProxyConfiguration
    from botocore.utils import get_environ_proxies

    proxies = ProxyConfiguration(proxies=get_environ_proxies(url))
    proxy_url = proxies.proxy_url_for(url)
    if not proxy_url:
        return None
    parts = urlsplit(proxy_url)
    if parts.scheme != "http" or not parts.hostname:
        raise UnsupportedDestinationError(f"the proxy is used over plain HTTP only, not over {parts.scheme}")
    authorization = proxies.proxy_headers_for(proxy_url).get("Proxy-Authorization")
    return Proxy(parts.hostname, parts.port or PROXY_PORT, authorization)


def _one_service_loader(service: str) -> Loader:
    """A loader that spares a client of one service what the general one reads: 20 ms instead of 80.

    That is a walk over the folders of all 400 services, and the 1.2 MB table of legacy endpoints, which a
    service with an endpoint rule set, such as DynamoDB and KMS, does not need.
    """
    from botocore.loaders import Loader

    class OneServiceLoader(Loader):
        def list_available_services(self, _type_name: str) -> list[str]:
            return [service]

        def load_data_with_path(self, name: str) -> tuple[Any, str]:
            if name == "endpoints":
                # The path marks the data as botocore's own; others would replace the rule set.
                return {"version": 3, "partitions": []}, f"{self.BUILTIN_DATA_PATH}{os.sep}{name}"
            found: tuple[Any, str] = super().load_data_with_path(name)
            return found

    return OneServiceLoader()


def translated(error: Exception, doing: str) -> Exception:
    """What a client's exception means to the port. `doing` opens the message, which is one line."""
    if isinstance(error, ServiceError):
        return _translated_answer(error.code, error.message, error.status, doing)
    if isinstance(error, WireError):
        return TableUnavailableError(f"{doing}: {_one_line(str(error))}")
    # Imported here: a client has raised, so botocore is loaded already.
    import botocore.exceptions as known
    from botocore.parsers import ResponseParserError

    if isinstance(error, known.ClientError):
        told, metadata = error.response["Error"], error.response.get("ResponseMetadata", {})
        code, words = str(told.get("Code", "Unknown")), str(told.get("Message", ""))
        return _translated_answer(code, words, int(metadata.get("HTTPStatusCode", 0)), doing)
    message = f"{doing}: {_one_line(str(error) or type(error).__name__)}"
    unanswered = (
        known.HTTPClientError,
        known.ConnectionError,
        known.ChecksumError,
        known.CredentialRetrievalError,
        known.MetadataRetrievalError,
        ResponseParserError,
        OSError,
    )
    if isinstance(error, unanswered):
        return TableUnavailableError(message)
    if isinstance(error, known.BotoCoreError):
        return TableRefusedError(message)
    if _while_parsing(error):
        return TableUnavailableError(f"{doing}: the answer cannot be read ({type(error).__name__})")
    return error


def _while_parsing(error: Exception) -> bool:
    """Whether botocore's parser raised it: about an answer, then, and not about what was asked."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") in PARSERS for frame in frames)


def _translated_answer(code: str, words: str, status: int, doing: str) -> Exception:
    message = f"{doing}: {code}: {_one_line(words)}"
    if code in TRANSIENT_CODES or status >= HTTP_SERVER_ERROR_MIN or status == HTTP_TOO_MANY_REQUESTS:
        return TableUnavailableError(message)
    if code in DATA_CODES:
        return UnstorableError(message)
    return TableRefusedError(message)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MESSAGE_CHARS_MAX]
