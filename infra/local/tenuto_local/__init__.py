"""The embedded stack, without containers: Kafka, DynamoDB Local, a local Lambda and a scheduler that fires.

    async with EmbeddedStack(functions=[FunctionSpec(name="f", handler="app.handler", root=".")]) as stack:
        ...  # stack.bootstrap_servers, stack.aws_endpoint_url, stack.environment()

Owns everything a development machine or a test needs in the place of AWS and Kafka. The two packages that are
deployed never import it.
"""

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
