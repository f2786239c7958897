"""The endpoint under test: the one the environment names, or a LocalStack started for the run.

Owns that choice and its reasons not to run. Clients come from localstack-client, which reads the same two
variables; `AWS_ENDPOINT_URL` comes first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from localstack_client.config import get_service_endpoint

from tenuto_local.localstack import LocalStackHost
from tests.support.stack import run

VARIABLES: Final = ("AWS_ENDPOINT_URL", "LOCALSTACK_HOST")
START_TIMEOUT_S: Final = 600.0  # The first start on a machine fetches jars.
ROOT: Final = Path(__file__).resolve().parents[2]
VENV: Final = ROOT / ".venv-localstack"
LOG: Final = ROOT / ".cache" / "localstack.log"
"""Where the log goes after a run with failures; everything else that LocalStack wrote is removed."""

MISSING: Final = (
    f"no {' or '.join(VARIABLES)} is set, and there is no {VENV.name} to start a LocalStack from: "
    "`make test-localstack` makes one where it finds a Python 3.13"
)


@contextmanager
def endpoint(has_failures: Callable[[], bool]) -> Iterator[str]:
    """The URL, while the endpoint is there. Without one: skips the test, and fails it where `CI` is set.

    `has_failures` tells at the end whether the log of an own LocalStack will be asked for.
    """
    if any(os.environ.get(name) for name in VARIABLES):
        yield _named()
        return
    if not (VENV / ".complete").exists():
        if os.environ.get("CI"):
            pytest.fail(MISSING, pytrace=False)
        pytest.skip(MISSING)
    host = LocalStackHost(VENV / "bin" / "python")
    run(host.start(), START_TIMEOUT_S)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCALSTACK_HOST", host.endpoint_url.removeprefix("http://"))
            yield _named()
    finally:
        if has_failures():
            LOG.parent.mkdir(exist_ok=True)
            shutil.copy(host.workdir / "localstack.log", LOG)
        run(host.stop())


def _named() -> str:
    url = get_service_endpoint("lambda")
    assert url, "localstack-client knows no endpoint"
    return str(url)
