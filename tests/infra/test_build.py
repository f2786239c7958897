"""`sam build` really run, and what it built really run: by Python alone, and by AWS's runtime client with a cold start.

Owns what is in the artefacts and that they work. Cold starts are measured and printed, never asserted: the machine's
other work decides about them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from aiobotocore.session import get_session

from tenuto.protocol.ids import InvocationId, Lane
from tenuto.protocol.messages import (
    Activation,
    Committed,
    Discover,
    Head,
    Manifest,
    Outcome,
    Request,
    decode_outcome,
    encode,
)
from tenuto.protocol.records import Event, KafkaSource
from tenuto.store.data_keys import Kms, StoredDataKeys
from tenuto.store.dynamodb import DynamoTable
from tenuto_local import EmbeddedStack, FunctionSpec
from tenuto_local.table import create_table
from tests.contract.table_clients import client_for
from tests.infra.tools import MACHINE, RUNTIME, TOOL_SECONDS_MAX, build
from tests.support.moto import moto_server
from tests.support.stack import aws_client, register, run
from tests.tidy import tree

pytestmark = [pytest.mark.slow, pytest.mark.stack]

SERVICE: Final = "userUpdates"
TABLE: Final = "cold-starts"
COLD_STARTS: Final = 3
TARGET_MS: Final = {"discovery": 150, "a step and its checkpoints": 400}
CHILD_SECONDS_MAX: Final = 60
ARTEFACT_BYTES_MAX: Final = 75_000_000

# `-I` and `-S` leave the standard library alone on the path. What the Lambda runtime brings, a function imports late.
CLEAN_PROCESS: Final = """
import json, sys
sys.path.insert(0, sys.argv[1])
from examples.user_updates.handler import handler
class Context:
    def get_remaining_time_in_millis(self):
        return 10_000
print(json.dumps(handler(json.loads(sys.argv[2]), Context())))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `sam build` filled, for this machine and this interpreter."""
    return build(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def handler_artefact(built: Path) -> Path:
    return built / "Functions" / "UserUpdates"


@pytest.fixture(scope="module")
def stack() -> Iterator[EmbeddedStack]:
    """A stack without a broker, with the table of lanes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENUTO_BOOTSTRAP_SERVERS", "127.0.0.1:9")
        embedded = EmbeddedStack()

    async def start() -> None:
        await embedded.start()
        async with client_for(embedded.environment()["AWS_ENDPOINT_URL_DYNAMODB"]) as client:
            await create_table(client, TABLE)

    try:
        run(start(), timeout_s=600.0)  # the first start on a machine fetches the jars
        yield embedded
    finally:
        run(embedded.stop())


def top_level(artefact: Path) -> set[str]:
    """What the artefact holds, without version records."""
    return {path.name for path in artefact.iterdir() if not path.name.endswith(".dist-info")}


def update(number: int) -> Activation:
    """A record for a user that nobody has heard of."""
    user = f"cold-{number}"
    value = {"user": user, "version": 1, "name": "Ann", "permissions": ["read"], "resources": ["inbox"]}
    event = Event(
        id=str(InvocationId(Lane(SERVICE, user), f"k{number}")),
        handler="update_user_event",
        source=KafkaSource("0", "user-updates", 0, number, 0, user.encode()),
        input=json.dumps(value).encode(),
    )
    return Activation(SERVICE, user, "speculate", Head(), f"holder-{number}", (event,), table=TABLE)


def test_the_artefact_of_a_handler_holds_the_sdk_and_the_handler(handler_artefact: Path) -> None:
    assert top_level(handler_artefact) == {"examples", "msgspec", "tenuto"}
    files = {path.relative_to(handler_artefact).as_posix() for path in handler_artefact.rglob("*.py")}
    assert {name for name in files if name.startswith("examples/")} == {
        "examples/ledger.py",
        "examples/user_updates/handler.py",
        "examples/user_updates/outside.py",
    }
    # Compiled ahead: Lambda's disk takes no cache, so each cold start would compile anew.
    assert len(list(handler_artefact.rglob("tenuto/**/*.pyc"))) == sum(name.startswith("tenuto/") for name in files)


def test_the_artefact_of_the_dispatcher_holds_the_control_plane_alone(built: Path) -> None:
    found = top_level(built / "Dispatcher" / "Dispatcher")
    assert {"tenuto", "tenuto_control", "tenuto.toml", "aiobotocore", "aiokafka", "mangum", "starlette"} <= found
    assert not found & {"tenuto_local", "examples", "pytest", "rich", "awslambdaric", "bin"}
    configuration = (built / "Dispatcher" / "Dispatcher" / "tenuto.toml").read_text("utf-8")
    assert "[functions.user_updates]" in configuration


def test_the_dispatcher_can_be_imported(built: Path) -> None:
    artefact = built / "Dispatcher" / "Dispatcher"
    program = "import sys; sys.path.insert(0, sys.argv[1]); from tenuto_control.lambda_entry import handler"
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, str(artefact)], check=True, cwd=artefact, timeout=CHILD_SECONDS_MAX
    )


def test_the_artefact_of_the_dispatcher_is_slim_and_still_reaches_what_it_calls(built: Path) -> None:
    artefact = built / "Dispatcher" / "Dispatcher"
    assert not top_level(artefact) & {"boto3", "s3transfer", "uvicorn", "httptools", "aws_msk_iam_sasl_signer"}
    services = {path.name for path in (artefact / "botocore" / "data").iterdir() if path.is_dir()}
    assert {"dynamodb", "kms", "lambda", "scheduler", "sts"} <= services
    assert len(services) < 10
    sources = list(artefact.rglob("*.py"))
    assert len(list(artefact.rglob("*.pyc"))) >= 0.99 * len(sources)
    assert sum(path.stat().st_size for path in artefact.rglob("*") if path.is_file()) < ARTEFACT_BYTES_MAX
    program = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from aiobotocore.session import get_session
from tenuto_control.drivers import msk_tokens, otel
async def main():
    for name in ("dynamodb", "kms", "lambda", "scheduler", "sts"):
        async with get_session().create_client(
            name, region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
        ):
            pass
    from botocore.credentials import Credentials
    assert msk_tokens.token_of(Credentials("x", "x"), "eu-west-1")
asyncio.run(main())
"""
    command = [sys.executable, "-I", "-S", "-c", program, str(artefact)]
    subprocess.run(command, check=True, cwd=artefact, timeout=CHILD_SECONDS_MAX)


def test_the_container_would_start_from_the_same_files(built: Path) -> None:
    # The image is made of this lock and these two packages, and starts this module; no engine here can run it.
    artefact = built / "Dispatcher" / "Dispatcher"
    answer = subprocess.run(
        [sys.executable, "-S", "-m", "tenuto_control", "check", "--offline", "--config", "tenuto.toml"],
        check=True,
        cwd=artefact,
        env={"PYTHONPATH": str(artefact)},
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS_MAX,
    )
    assert answer.stdout == "tenuto.toml: 1 function, 1 subscription\n"


def test_a_handler_answers_with_nothing_but_its_artefact(handler_artefact: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CLEAN_PROCESS, str(handler_artefact), encode(Discover()).decode()],
        check=True,
        capture_output=True,
        timeout=CHILD_SECONDS_MAX,
    )
    manifest = decode_outcome(answer.stdout)
    assert isinstance(manifest, Manifest)
    assert [service.name for service in manifest.services] == [SERVICE]


def cold_invoke(
    stack: EmbeddedStack, client: Any, artefact: Path, request: Request, tmp_path: Path, **environment: str
) -> tuple[Outcome, float]:
    """Invoke a function that has just been deployed; its outcome, and how many milliseconds that took."""
    register(
        stack,
        FunctionSpec(
            name="user-updates",
            handler="examples.user_updates.handler.handler",
            root=str(artefact),
            timeout_s=10.0,
            environment={"TENUTO_EXAMPLE_DIR": str(tmp_path), **environment},
        ),
    )
    payload = encode(request)
    began = time.perf_counter()
    answer = client.invoke(FunctionName="user-updates", Payload=payload)
    body = answer["Payload"].read()
    took_ms = (time.perf_counter() - began) * 1000
    assert "FunctionError" not in answer, body
    return decode_outcome(body), took_ms


def test_the_runtime_client_runs_the_artefact_from_cold(
    stack: EmbeddedStack, handler_artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = aws_client(stack, "lambda")
    cold_invoke(stack, client, handler_artefact, Discover(), tmp_path)  # warms this side, and the machine's files
    took_ms: dict[str, list[float]] = {what: [] for what in TARGET_MS}
    for number in range(COLD_STARTS):
        outcome, took = cold_invoke(stack, client, handler_artefact, Discover(), tmp_path)
        assert isinstance(outcome, Manifest)
        took_ms["discovery"].append(took)
        outcome, took = cold_invoke(stack, client, handler_artefact, update(number), tmp_path)
        assert isinstance(outcome, Committed)
        took_ms["a step and its checkpoints"].append(took)
    with capsys.disabled():
        for what, times in took_ms.items():
            print(
                f"\ncold start, {what}: median {statistics.median(times):.0f} ms, "
                f"best {min(times):.0f} ms (target {TARGET_MS[what]} ms)",
                end="",
            )


@pytest.fixture(scope="module")
def kms() -> Iterator[str]:
    """The endpoint of a KMS."""
    with moto_server() as endpoint_url:
        yield endpoint_url


def test_an_artefact_built_for_encryption_encrypts(
    stack: EmbeddedStack, kms: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = tmp_path / "artefact"
    artefact.mkdir()
    variables = {"TENUTO_RUNTIME": RUNTIME, "TENUTO_ARCHITECTURE": MACHINE, "TENUTO_ENCRYPTION": "true"}
    makefile = str(tree.ROOT / "infra" / "lambda" / "Makefile")
    command = ["make", "-f", makefile, "build-UserUpdates", f"ARTIFACTS_DIR={artefact}", f"PYTHON={sys.executable}"]
    subprocess.run(command, check=True, env={**os.environ, **variables}, timeout=TOOL_SECONDS_MAX)
    assert "cryptography" in top_level(artefact)

    async def make_data_key() -> None:
        async with (
            get_session().create_client(
                "kms",
                region_name="us-east-1",
                endpoint_url=kms,
                aws_access_key_id="local",
                aws_secret_access_key="local",
            ) as client,
            client_for(stack.environment()["AWS_ENDPOINT_URL_DYNAMODB"]) as dynamodb,
        ):
            key_id = (await client.create_key())["KeyMetadata"]["KeyId"]
            await StoredDataKeys(DynamoTable(dynamodb, TABLE), Kms(client, key_id), makes=True).current()

    run(make_data_key())
    client, took_ms = aws_client(stack, "lambda"), list[float]()
    for number in range(COLD_STARTS):
        request = msgspec.structs.replace(update(1_000 + number), encrypted=True)
        outcome, took = cold_invoke(stack, client, artefact, request, tmp_path, AWS_ENDPOINT_URL_KMS=kms)
        assert isinstance(outcome, Committed), outcome
        took_ms.append(took)
    with capsys.disabled():
        print(f"\ncold start, the same encrypted: median {statistics.median(took_ms):.0f} ms", end="")
