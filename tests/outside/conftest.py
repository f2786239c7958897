"""The environment with the wheel, which is that of `tests/install`."""

from tests.install.conftest import bare, wheel

__all__ = ["bare", "wheel"]
