"""tenuto: durable handlers for Kafka events and calls, on Lambda and DynamoDB.

Owns the public names that users import, and nothing else: each is defined in the module that it is imported from.
"""

from tenuto.context import (
    Context,
    KafkaOrigin,
    ObjectContext,
    ObjectSharedContext,
    Request,
    RunOptions,
    gather,
    idempotency_key,
)
from tenuto.errors import (
    BadInputError,
    InvalidArgumentError,
    JournalMismatchError,
    RetryableError,
    StateTooLargeError,
    TenutoError,
    TerminalError,
    UnserialisableError,
)
from tenuto.handler import Handler, ObjectHandler, ServiceHandler, SharedHandler
from tenuto.logs import InvocationLogFilter
from tenuto.runtime.futures import DurableFuture
from tenuto.serde import BytesSerde, JsonSerde, Serde
from tenuto.service import InvocationRetryPolicy, Service, VirtualObject

__all__ = [
    "BadInputError",
    "BytesSerde",
    "Context",
    "DurableFuture",
    "Handler",
    "InvalidArgumentError",
    "InvocationLogFilter",
    "InvocationRetryPolicy",
    "JournalMismatchError",
    "JsonSerde",
    "KafkaOrigin",
    "ObjectContext",
    "ObjectHandler",
    "ObjectSharedContext",
    "Request",
    "RetryableError",
    "RunOptions",
    "Serde",
    "Service",
    "ServiceHandler",
    "SharedHandler",
    "StateTooLargeError",
    "TenutoError",
    "TerminalError",
    "UnserialisableError",
    "VirtualObject",
    "gather",
    "idempotency_key",
]
