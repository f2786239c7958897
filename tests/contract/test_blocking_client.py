"""The client that functions make for themselves: what it costs to have, and where it goes.

Owns the shortcuts of its making. Does not own its behaviour as a table (`test_table`).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import botocore.session
import certifi
import pytest

from tenuto.lane.writes import Key
from tenuto.store.aws_client import CLIENT_VARIABLE, CaughtRequest, blocking_client, catch_requests, destination_of
from tenuto.store.dynamodb import BlockingDynamoTable
from tenuto.store.port import TableRefusedError, TableUnavailableError
from tenuto.store.senders import BotocoreSender, WireSender, open_sender
from tenuto.wire.blocking import BlockingClient
from tenuto.wire.destination import Proxy
from tenuto.wire.errors import LostError
from tests.contract.table_clients import AWS_CLIENTS

LOADED = """
import sys
from tenuto.store.dynamodb import BlockingDynamoTable
BlockingDynamoTable("lanes").close()
sys.exit(any(name.partition(".")[0] in ("botocore", "aiobotocore", "urllib3") for name in sys.modules))
"""


def test_a_function_that_writes_nothing_loads_no_aws_client() -> None:
    assert subprocess.run([sys.executable, "-c", LOADED], check=False).returncode == 0


class StockRequest(Exception):
    """The request that would have been sent."""

    def __init__(self, request: Any) -> None:
        super().__init__(request.url)
        authorization: str = request.headers["Authorization"].decode()
        # Where it goes, and the region and service it is signed for; the rest depends on the time.
        self.destination = (request.url, authorization.split("/")[2:4])


def destination(client: Any) -> tuple[str, list[str]]:
    """Where a client would send a request, without sending it."""

    def catch(request: Any, **_: Any) -> NoReturn:
        raise StockRequest(request)

    client.meta.events.register("before-send.dynamodb", catch)
    with pytest.raises(StockRequest) as caught:
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


class Caught:
    """In place of a connection: where a request would go."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, list[str]]] = []

    def method(self) -> Callable[[Any, Any], NoReturn]:
        """A method of the client that notes a request and fails it."""

        def exchange(client: Any, request: Any) -> NoReturn:
            head = client._signer.signed_head(request, client._credentials(), 0.0).decode()
            scope = next(line for line in head.split("\r\n") if line.startswith("authorization: "))
            self.seen.append((client._to, scope.split("/")[2:4]))
            raise LostError("it was caught")

        return exchange


@pytest.mark.parametrize("fips", ["false", "true"])
@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1", "eusc-de-east-1"])
def test_a_functions_writes_go_where_the_stock_client_goes(
    region: str, fips: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_DEFAULT_REGION", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    use_credentials(monkeypatch, region)
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", fips)
    url, scope = destination(botocore.session.Session().create_client("dynamodb", region_name=region))
    caught = Caught()
    monkeypatch.setattr(BlockingClient, "_exchange", caught.method())
    table = BlockingDynamoTable("lanes")
    with pytest.raises(TableUnavailableError, match="it was caught"):
        asyncio.run(table.get(Key("a", "H")))
    ((to, signed_for),) = caught.seen
    assert (f"https://{to.authority}/", signed_for) == (url, scope)
    assert to.ca_bundle == certifi.where()
    sender = BotocoreSender(*caught_request())
    assert sender._url == url
    sender.close()


def use_credentials(monkeypatch: pytest.MonkeyPatch, region: str = "us-east-1") -> None:
    """A region, and a key that nobody knows."""
    monkeypatch.setenv("AWS_REGION", region)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def caught_request() -> tuple[Any, CaughtRequest]:
    """A session, and the request of its client that was caught."""
    session, client = blocking_client("dynamodb")
    catch_requests(client)
    with pytest.raises(CaughtRequest) as caught:
        client.describe_limits()
    client.close()
    return session, caught.value


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, Proxy("proxy.example", 3128)),
        ({"HTTPS_PROXY": "proxy.example"}, Proxy("proxy.example", 80)),
        ({"HTTPS_PROXY": "http://me:p%40ss@[::1]:8080"}, Proxy("::1", 8080, "Basic bWU6cEBzcw==")),
        ({"HTTPS_PROXY": "http://proxy.example", "NO_PROXY": "amazonaws.com"}, None),
        ({"HTTP_PROXY": "http://proxy.example"}, None),
    ],
    ids=repr,
)
def test_proxies_are_those_of_the_environment(
    variables: dict[str, str], proxy: Proxy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_credentials(monkeypatch)
    for name, value in ({"HTTPS_PROXY": "", "HTTP_PROXY": "", "NO_PROXY": ""} | variables).items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_DYNAMODB", raising=False)
    assert destination_of(*caught_request(), "/").proxy == proxy


def test_a_proxy_behind_tls_is_left_to_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    monkeypatch.setenv("https_proxy", "https://proxy.example")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_DYNAMODB", raising=False)
    sender = open_sender()
    assert isinstance(sender, BotocoreSender)
    sender.close()


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_certificates_are_those_of_the_environment(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    monkeypatch.setenv(variable, "/some/bundle.pem")
    assert destination_of(*caught_request(), "/").ca_bundle == "/some/bundle.pem"


@pytest.mark.parametrize(("wanted", "kind"), [("", WireSender), ("wire", WireSender), ("Botocore", BotocoreSender)])
def test_the_environment_chooses_the_client(wanted: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    monkeypatch.setenv(CLIENT_VARIABLE, wanted)
    sender = open_sender()
    assert isinstance(sender, kind)
    sender.close()


def test_a_client_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    monkeypatch.setenv(CLIENT_VARIABLE, "curl")
    with pytest.raises(ValueError, match=r"^TENUTO_AWS_CLIENT is wire or botocore, not curl$"):
        asyncio.run(BlockingDynamoTable("lanes").get(Key("a", "H")))


def test_without_credentials_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    for client in AWS_CLIENTS:
        monkeypatch.setenv(CLIENT_VARIABLE, client)
        with pytest.raises(TableRefusedError, match="Unable to locate credentials"):
            asyncio.run(BlockingDynamoTable("lanes").get(Key("a", "H")))
