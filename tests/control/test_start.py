"""Starting the always-on control plane: what a table that refuses or does not answer leads to.

Virtual time: waiting costs none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from tenuto.store.data_keys import StoredDataKeys
from tenuto.store.dynamodb import DynamoTable
from tenuto.store.memory import MemoryTable
from tenuto.store.port import TableRefusedError
from tenuto_control import __main__ as program
from tenuto_control import always_on, assembly
from tenuto_control.always_on import check_data_keys, check_table
from tenuto_control.config import Config, ConfigError
from tests.support.memory_kms import MemoryKms
from tests.support.virtual_time import run_virtual


class Client:
    """A DynamoDB client of which only reads are asked: it raises what it was given, then finds nothing."""

    meta = SimpleNamespace(events=SimpleNamespace(register=lambda *_: None))

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked = 0

    async def get_item(self, **_: Any) -> dict[str, Any]:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return {}


def told(code: str, message: str) -> ClientError:
    """An error as botocore raises it."""
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    return ClientError(response, "GetItem")


def check(client: Client) -> None:
    run_virtual(check_table(DynamoTable(cast("Any", client), "lanes"), "lanes"))


@pytest.mark.parametrize(
    "error",
    [
        told("ResourceNotFoundException", "Requested resource not found"),
        told("AccessDeniedException", "not authorized to perform dynamodb:GetItem"),
        NoCredentialsError(),
    ],
    ids=["no such table", "no permission", "no credentials"],
)
def test_a_table_that_refuses_ends_the_start_with_one_line(error: Exception) -> None:
    client = Client(error)
    with pytest.raises(ConfigError, match=r"^table 'lanes' cannot be used: .+") as caught:
        check(client)
    assert "\n" not in str(caught.value)
    assert client.asked == 1


def test_a_table_that_does_not_answer_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    away = EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
    client = Client(*[away] * 7, told("ThrottlingException", "slow down"))
    with caplog.at_level(logging.WARNING, "tenuto"):
        check(client)
    lines = [record.getMessage() for record in caplog.records]
    assert client.asked == 9
    assert [line.partition(";")[0] for line in lines] == [
        "the table has not answered for 2 s",
        "the table has not answered for 6 s",
        "the table has not answered for 14 s",
    ]
    assert all(record.exc_info is None for record in caplog.records)


def test_a_kms_key_that_may_not_be_used_ends_the_start_with_one_line() -> None:
    class Kms(MemoryKms):
        async def generate(self, context: Mapping[str, str]) -> tuple[bytes, bytes]:
            raise TableRefusedError("AccessDeniedException: not authorized to perform kms:GenerateDataKey")

    with pytest.raises(ConfigError, match=r"^\[encryption\] kms_key_id cannot be used: AccessDenied"):
        run_virtual(check_data_keys(StoredDataKeys(MemoryTable(), Kms(), makes=True)))


def test_kms_that_does_not_answer_is_waited_for() -> None:
    kms = MemoryKms()
    kms.away = True

    async def scenario() -> None:
        check = asyncio.ensure_future(check_data_keys(StoredDataKeys(MemoryTable(), kms, makes=True)))
        await asyncio.sleep(60)
        assert not check.done()
        kms.away = False
        await check

    run_virtual(scenario())


def test_a_start_that_waits_is_over_when_told_to_stop() -> None:
    away = EndpointConnectionError(endpoint_url="http://127.0.0.1:1")

    async def scenario() -> None:
        client = Client(*[away] * 1_000)
        stop = asyncio.Event()
        checking = asyncio.create_task(check_table(DynamoTable(cast("Any", client), "lanes"), "lanes"))
        starting = asyncio.create_task(always_on._unless(stop, checking))
        await asyncio.sleep(60)
        assert not starting.done()
        stop.set()
        assert await starting is False
        assert checking.cancelled()

    run_virtual(scenario())


def test_the_program_ends_with_that_line_and_a_status_for_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @asynccontextmanager
    async def clients(_config: Config) -> AsyncIterator[Any]:
        client = Client(told("ResourceNotFoundException", "Requested resource not found"))
        yield SimpleNamespace(dynamodb=client, lambda_=None, scheduler=None, kms=None)

    monkeypatch.setattr(assembly, "open_clients", clients)
    file = tmp_path / "tenuto.toml"
    file.write_text("[functions.shop]\n")
    assert program.main(["run", "--config", str(file)]) == program.EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tenuto: table 'tenuto' cannot be used: ")
    assert "Requested resource not found" in line
