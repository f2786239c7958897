"""What a function is: the part of a Lambda function's configuration that has a meaning on one machine.

Owns the structure, its bounds and its JSON form (a file of them starts the gateway). Runs nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from tenuto_local.errors import ConfigurationError

TIMEOUT_S_MAX = 900.0
INIT_TIMEOUT_S = 10.0
"""AWS gives the import of a function's module ten seconds."""
CONCURRENCY_MAX = 1000
ENVIRONMENT_BYTES_MAX = 4096
_NAME = re.compile(r"[a-zA-Z0-9-_]{1,64}")


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One function.

    `handler` is `package.module.attribute`; `root` is the directory it is imported from, and its working
    directory. `concurrency` is the reserved concurrency, hence the most worker processes there can be. An
    invocation beyond it is refused as on AWS, unless `queue_limit` lets that many wait.
    `async_retry_delays_s` are the pauses before the retries of an asynchronous (`Event`) invocation: AWS
    makes two, after one and two minutes. `init_timeout_s` is what the import of its module may take. With `inherits`
    its processes see the variables of whoever started the stack, as programs on a development machine do; on AWS there
    is nothing to inherit.
    """

    name: str
    handler: str
    root: str
    timeout_s: float = 3.0
    init_timeout_s: float = INIT_TIMEOUT_S
    memory_mb: int = 128
    environment: dict[str, str] = {}
    concurrency: int = 2
    queue_limit: int = 0
    async_retry_delays_s: tuple[float, ...] = (1.0, 2.0)
    inherits: bool = False

    def check(self) -> FunctionSpec:
        """Return itself; raises `ConfigurationError` for what Lambda would refuse or cannot run here."""
        if _NAME.fullmatch(self.name) is None:
            raise ConfigurationError(f"function name {self.name!r}: letters, digits, - and _, at most 64")
        if "." not in self.handler:
            raise ConfigurationError(
                f"function {self.name}: handler {self.handler!r} is not of the form module.attribute"
            )
        if not Path(self.root).is_dir():
            raise ConfigurationError(f"function {self.name}: root {self.root!r} is not a directory")
        if not 0 < self.timeout_s <= TIMEOUT_S_MAX:
            raise ConfigurationError(f"function {self.name}: timeout_s must be above 0 and at most {TIMEOUT_S_MAX:.0f}")
        if not 0 < self.init_timeout_s <= TIMEOUT_S_MAX:
            raise ConfigurationError(
                f"function {self.name}: init_timeout_s must be above 0 and at most {TIMEOUT_S_MAX:.0f}"
            )
        if not 0 < self.concurrency <= CONCURRENCY_MAX or self.queue_limit < 0:
            raise ConfigurationError(
                f"function {self.name}: concurrency must be 1 to {CONCURRENCY_MAX}, queue_limit >= 0"
            )
        if sum(len(key) + len(value) for key, value in self.environment.items()) > ENVIRONMENT_BYTES_MAX:
            raise ConfigurationError(f"function {self.name}: its environment is above {ENVIRONMENT_BYTES_MAX} bytes")
        return self


def decode_function_specs(data: bytes) -> list[FunctionSpec]:
    """Read a JSON array of functions; raises `ConfigurationError` that says which field is wrong."""
    try:
        specs = msgspec.json.decode(data, type=list[FunctionSpec])
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"the functions cannot be read: {error}") from error
    return [spec.check() for spec in specs]
