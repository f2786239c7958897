"""Payload encryption on the whole system: KMS as moto plays it, everything else real.

Owns that control plane and functions, each with clients of their own, write and read what nobody else can. Does not own
the form at rest (`tests/contract/test_encrypted.py`).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import boto3
import pytest
from aiobotocore.session import get_session

from tenuto_local.lambda_service.function_spec import FunctionSpec
from tenuto_local.system import TABLE, System
from tests.stack import app
from tests.stack.world import EVENTUALLY_S, LOOK_AGAIN_S, World, on_the_stack
from tests.support.moto import moto_server
from tests.support.stack import run

ROOT = Path(__file__).resolve().parents[2]
MARK: Final = "quite-unmistakable"
CONFIG = """
[functions.app]

[[subscriptions]]
topic = "jobs"
target = "account/work"

[encryption]
kms_key_id = "alias/payloads"

# So that what waits for the nap is spilled.
[limits]
spill_after_ms = 200
"""


@dataclass(slots=True)
class Encrypted(World):
    """A world whose payloads are encrypted, and the endpoint of its KMS."""

    kms: str = ""


@pytest.fixture(scope="module")
def kms() -> Iterator[str]:
    """The endpoint of a KMS that has the key."""
    with moto_server() as endpoint_url:
        client = boto3.client(
            "kms",
            region_name="us-east-1",
            endpoint_url=endpoint_url,
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )
        client.create_alias(AliasName="alias/payloads", TargetKeyId=client.create_key()["KeyMetadata"]["KeyId"])
        yield endpoint_url


@pytest.fixture(scope="module")
def world(kms: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    notes = tmp_path_factory.mktemp("notes") / "notes"
    environment = {app.NOTES_VARIABLE: str(notes), "AWS_ENDPOINT_URL_KMS": kms}
    function = FunctionSpec(
        name="app", handler="tests.stack.app.handler", root=str(ROOT), timeout_s=5.0, environment=environment
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_KMS", kms)
        system = System([function], topics={"jobs": 1, "jobs.dead-letter": 1}, config_text=CONFIG)
        run(system.start(), timeout_s=600.0)  # the first start on a machine fetches the jars
    try:
        yield Encrypted(system, notes, kms=kms)
    finally:
        run(system.stop())


async def at_rest(world: World) -> str:
    """Everything the table holds, as text."""
    environment = world.system.environment()
    async with get_session().create_client(
        "dynamodb",
        region_name="us-east-1",
        endpoint_url=environment["AWS_ENDPOINT_URL_DYNAMODB"],
        aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID", os.environ.get("AWS_ACCESS_KEY_ID", "local")),
        aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY", "local"),
    ) as client:
        return "\n".join(repr(item) for item in (await client.scan(TableName=TABLE))["Items"])


@on_the_stack
async def test_a_key_sleeps_crashes_and_goes_on_and_nothing_of_it_can_be_read_in_the_table(world: World) -> None:
    key = world.key("secret")
    jobs = [app.Job("wait", MARK), app.Job("nap", MARK), app.Job("crash", MARK), app.Job("note", f"{MARK} later")]
    await world.produce("jobs", *((key, job) for job in jobs))
    seen: set[str] = set()

    async def looked() -> set[str]:
        shown = await at_rest(world)
        assert MARK not in shown
        seen.update(name for name in ("'run'", "'j.", "'ev'") if name in shown)
        return seen

    # The run in its head, its journal and the inbox of what waits behind it.
    await world.eventually(looked, {"'run'", "'j.", "'ev'"})
    [identity] = world.notes(key)
    assert (await world.post(f"/awakeables/{identity}/resolve", MARK)).status == 202
    wanted = [identity, f"before {MARK}", f"after {MARK}", "one", "two", "two", "three", f"{MARK} later"]
    async with asyncio.timeout(EVENTUALLY_S):
        while world.notes(key) != wanted:
            await looked()
            await asyncio.sleep(LOOK_AGAIN_S)


@on_the_stack
async def test_a_new_data_key_is_one_command_away(world: World) -> None:
    assert isinstance(world, Encrypted)
    key = world.key("before")
    await world.post(f"/call/account/{key}/add", 3)
    config = world.system.stack.workdir / "tenuto.toml"
    command = [sys.executable, "-m", "tenuto_control", "rotate-data-key", "--config", str(config)]
    environment = {**os.environ, **world.system.environment(), "AWS_ENDPOINT_URL_KMS": world.kms}
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=EVENTUALLY_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("data key 2 of table 'tenuto' is current")
    # What was written under the first one can still be read and changed.
    await world.post(f"/call/account/{key}/add", 4)
    assert await world.state(key) == {"total": 7}


@on_the_stack
async def test_calls_and_their_results_are_encrypted_as_well(world: World) -> None:
    key = world.key("called")
    answer = await world.post(f"/call/account/{key}/work", app.Job("note", MARK), idempotency_key="once")
    assert (answer.status, answer.body) == (200, "note")
    again = await world.post(f"/call/account/{key}/work", app.Job("note", MARK), idempotency_key="once")
    assert (again.status, again.body) == (200, "note")
    assert world.notes(key) == [MARK]
    waits = await world.post(f"/send/account/{key}/work", app.Job("wait", MARK))
    assert waits.status == 202
    await world.eventually(lambda: len(world.notes(key)), 2)
    resolved = await world.post(f"/awakeables/{world.notes(key)[1]}/resolve", MARK)
    assert resolved.status in (200, 202, 204), resolved
    await world.eventually(lambda: world.state(key), {"answer": MARK})
    assert MARK not in await at_rest(world)
