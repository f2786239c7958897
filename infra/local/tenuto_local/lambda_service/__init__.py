"""A local AWS Lambda: the Invoke API over functions in processes of their own, under AWS's runtime client."""

from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.lambda_service.service import LambdaService

__all__ = ["FunctionSpec", "LambdaService"]
