"""The client that functions make for themselves: what it costs to have, and where it goes.

Owns the shortcuts of its making. Does not own its behaviour as a table (`test_table`).
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NoReturn

import botocore.session
import pytest

from tenuto.store.aws_client import blocking_client

LOADED = """
import sys
from tenuto.store.dynamodb import BlockingDynamoTable
BlockingDynamoTable("lanes").close()
sys.exit(any(name.partition(".")[0] in ("botocore", "aiobotocore", "urllib3") for name in sys.modules))
"""


def test_a_function_that_writes_nothing_loads_no_aws_client() -> None:
    assert subprocess.run([sys.executable, "-c", LOADED], check=False).returncode == 0


class CaughtRequest(Exception):
    """The request that would have been sent."""

    def __init__(self, request: Any) -> None:
        super().__init__(request.url)
        authorization: str = request.headers["Authorization"].decode()
        # Where it goes, and the region and service it is signed for; the rest depends on the time.
        self.destination = (request.url, authorization.split("/")[2:4])


def destination(client: Any) -> tuple[str, list[str]]:
    """Where a client would send a request, without sending it."""

    def catch(request: Any, **_: Any) -> NoReturn:
        raise CaughtRequest(request)

    client.meta.events.register("before-send.dynamodb", catch)
    with pytest.raises(CaughtRequest) as caught:
        client.get_item(TableName="lanes", Key={"pk": {"S": "a"}, "sk": {"S": "H"}})
    client.close()
    return caught.value.destination


@pytest.mark.parametrize("fips", ["false", "true"])
@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1", "eusc-de-east-1"])
def test_it_goes_where_the_stock_client_goes(region: str, fips: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_REGION", region)
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", fips)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    stock = botocore.session.Session().create_client("dynamodb", region_name=region)
    assert destination(blocking_client("dynamodb")[1]) == destination(stock)
