"""A LocalStack of one's own, in host mode: without Docker, without a token."""

from tenuto_local.localstack.host_mode import LocalStackHost

__all__ = ["LocalStackHost"]
