"""The embedded stack, without containers: Kafka, DynamoDB Local, a local Lambda and a scheduler that fires.

    async with EmbeddedStack(functions=[FunctionSpec(name="f", handler="app.handler", root=".")]) as stack:
        ...  # stack.bootstrap_servers, stack.aws_endpoint_url, stack.environment()

Owns everything a development machine or a test needs in the place of AWS and Kafka. The two packages that are
deployed never import it.
"""

from __future__ import annotations

TYPE_CHECKING = False
"""As in `typing`, whose import takes as long as everything else here."""

if TYPE_CHECKING:
    from typing import Any

    from tenuto_local.errors import (
        ConfigurationError,
        FetchFailed,
        LocalStackError,
        PrerequisiteMissing,
        ProcessFailed,
    )
    from tenuto_local.lambda_service.function_spec import FunctionSpec
    from tenuto_local.prerequisites import PrerequisiteReport, check_prerequisites
    from tenuto_local.stack import EmbeddedStack
    from tenuto_local.topics import create_topics

__all__ = [
    "ConfigurationError",
    "EmbeddedStack",
    "FetchFailed",
    "FunctionSpec",
    "LocalStackError",
    "PrerequisiteMissing",
    "PrerequisiteReport",
    "ProcessFailed",
    "check_prerequisites",
    "create_topics",
]

# Imported when they are asked for: the commands of this package say what a Ctrl-C means before anything slow is loaded.
_HOMES = {
    "EmbeddedStack": "stack",
    "FunctionSpec": "lambda_service.function_spec",
    "PrerequisiteReport": "prerequisites",
    "check_prerequisites": "prerequisites",
    "create_topics": "topics",
}


def __getattr__(name: str) -> Any:
    """One of `__all__`. Raises AttributeError."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # Rarely needed, and not for free.

    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
