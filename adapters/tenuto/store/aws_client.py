"""AWS clients as both sides use them: their settings, a quick blocking one for functions, and what their errors mean.

Owns nothing of a single service's operations. Nothing of botocore is imported before the first use, so that a function
that makes no request does not pay for it.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tenuto.store.port import TableRefusedError, TableUnavailableError, UnstorableError

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
    # Each of these three is looked up or computed anew for every request otherwise.
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
    # Imported here: a client has raised, so botocore is loaded already.
    import botocore.exceptions as known
    from botocore.parsers import ResponseParserError

    if isinstance(error, known.ClientError):
        return _translated_answer(error.response, doing)
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


def _translated_answer(response: Mapping[str, Any], doing: str) -> Exception:
    code = str(response["Error"].get("Code", "Unknown"))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    message = f"{doing}: {code}: {_one_line(str(response['Error'].get('Message', '')))}"
    if code in TRANSIENT_CODES or status >= HTTP_SERVER_ERROR_MIN or status == HTTP_TOO_MANY_REQUESTS:
        return TableUnavailableError(message)
    if code in DATA_CODES:
        return UnstorableError(message)
    return TableRefusedError(message)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MESSAGE_CHARS_MAX]
