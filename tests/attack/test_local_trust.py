"""Who may talk to what the embedded stack starts: its own processes, and neither web pages nor other users.

Owns the gateway and the Runtime API of a worker, both real, under requests that a browser sends for a page of another
site, and under requests by somebody who does not know this start's secrets. Does not own what the services answer to
those who may ask (`tests/local`).
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto_local import EmbeddedStack, FunctionSpec
from tenuto_local.gateway_contract import ADMIN_DYNAMODB, ADMIN_FUNCTIONS, ADMIN_HEADER, ADMIN_VARIABLE
from tenuto_local.http_server import Request
from tenuto_local.signatures import claim_of, proven
from tests.attack.examples import examples
from tests.support.stack import aws_client, run

NOWHERE = "http://127.0.0.1:9"
HANDLER = """
import os

def handler(event, context):
    return {name: os.environ.get(name) for name in event}
"""
PAGES = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:3000"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    {"Host": "evil.example"},
    {"Host": "evil.example:{port}"},
    {"Host": "127.0.0.1.evil.example:{port}"},
    {"Host": "127.0.0.1:1"},
    {"Host": ""},
]
"""What marks a request that a browser sends for a page; `{port}` is the server's own."""

Answer = tuple[int, bytes]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """A gateway with one function, before a DynamoDB that does not answer."""
    root = tmp_path_factory.mktemp("functions")
    (root / "tells.py").write_text(HANDLER)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        patch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
        patch.setenv("TENUTO_BOOTSTRAP_SERVERS", "127.0.0.1:9")
        patch.setenv("AWS_ENDPOINT_URL_DYNAMODB", NOWHERE)
        embedded = EmbeddedStack([FunctionSpec(name="tells", handler="tells.handler", root=str(root))])
    run(embedded.start())
    try:
        yield embedded
    finally:
        run(embedded.stop())


def send(address: str, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
    """One raw request; a Host in `headers` takes the place of the right one."""
    port = int(address.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value.format(port=port))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def secret(stack: EmbeddedStack) -> dict[str, str]:
    return {ADMIN_HEADER: stack._secret}


def signed(stack: EmbeddedStack, path: str, body: bytes, service: str = "lambda", **changes: str) -> dict[str, str]:
    """The headers with which botocore signs a POST; `changes` are other credentials."""
    own = stack.environment()
    url = f"{own['AWS_ENDPOINT_URL']}{path}"
    key = changes.get("key", own["AWS_ACCESS_KEY_ID"])
    request = AWSRequest("POST", url, data=body, headers={"Host": urlsplit(url).netloc})
    credentials = Credentials(key, changes.get("secret_key", own["AWS_SECRET_ACCESS_KEY"]))
    SigV4Auth(credentials, service, own["AWS_REGION"]).add_auth(request)
    return dict(request.headers)


def tells(stack: EmbeddedStack, *names: str) -> dict[str, str | None]:
    """What the function finds in its environment, asked as clients ask."""
    answer = aws_client(stack, "lambda").invoke(FunctionName="tells", Payload=json.dumps(names).encode())
    found: dict[str, str | None] = json.loads(answer["Payload"].read())
    return found


def replacement(folder: Path) -> bytes:
    """A function that would run a command, in the place of the developer's."""
    spec = {
        "name": "tells",
        "handler": "antigravity.x",
        "root": str(folder),
        "environment": {"BROWSER": "/bin/sh -c id"},
    }
    return json.dumps([spec]).encode()


@pytest.mark.parametrize("page", PAGES, ids=repr)
@pytest.mark.parametrize(
    "path", [ADMIN_FUNCTIONS, ADMIN_DYNAMODB, "/2015-03-31/functions/tells/invocations", "/", "/x"]
)
def test_no_page_is_answered_whatever_it_knows(
    stack: EmbeddedStack, page: dict[str, str], path: str, tmp_path: Path
) -> None:
    """Even with the secret and a true signature: a page has no business here."""
    body = replacement(tmp_path)
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        headers = {**signed(stack, path, body), **secret(stack), "Content-Type": "text/plain", **page}
        status, said = send(stack.aws_endpoint_url, method, path, headers, body)
        assert status == 403, (method, said)
    assert run(stack.describe_functions())["tells"]["log"]
    assert set(run(stack.describe_functions())) == {"tells"}


@settings(max_examples=examples(40), deadline=None)
@given(given_secret=st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=80))
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", [ADMIN_FUNCTIONS, ADMIN_DYNAMODB])
def test_the_admin_paths_take_this_starts_secret_alone(
    stack: EmbeddedStack, path: str, method: str, given_secret: str | None
) -> None:
    body = replacement(Path("/tmp"))
    known = [None if given_secret is None else given_secret.replace("{", "").replace("}", "")]
    known += ["", stack._secret[:-1], stack._secret.upper(), stack.environment()["AWS_SECRET_ACCESS_KEY"]]
    for one in known:
        headers = {"Content-Type": "text/plain"} if one is None else {ADMIN_HEADER: one}
        headers |= signed(stack, path, body)
        assert send(stack.aws_endpoint_url, method, path, headers, body)[0] == 403, one
    assert send(stack.aws_endpoint_url, "GET", path, secret(stack))[0] == 200


def test_a_function_is_run_only_for_whoever_signs_with_this_starts_key(stack: EmbeddedStack) -> None:
    path, body = "/2015-03-31/functions/tells/invocations", b"[]"
    assert send(stack.aws_endpoint_url, "POST", path, signed(stack, path, body), body) == (200, b"{}")
    own = stack.environment()
    true = signed(stack, path, body)
    false: list[tuple[str, dict[str, str], bytes]] = [
        (path, {}, body),
        (path, {"Authorization": true["Authorization"]}, body),
        (
            path,
            {**true, "Authorization": f"{true['Authorization'][:-1]}{'01'[true['Authorization'][-1] == '0']}"},
            body,
        ),
        (path, signed(stack, path, body, secret_key="tenuto"), body),
        (path, signed(stack, path, body, key="AKIDEXAMPLE"), body),
        (path, signed(stack, path, body, service="scheduler"), b"[1]"),
        (path, true, b'["PATH"]'),
        (path.replace("tells", "other"), true, body),
        (f"{path}?Qualifier=1", true, body),
        (path, {**true, "X-Amz-Date": "20200101T000000Z"}, body),
        (path, {**true, "Host": f"localhost:{own['AWS_ENDPOINT_URL'].rpartition(':')[2]}"}, body),
        ("/schedules/x", signed(stack, "/schedules/x", b"{}", "scheduler", secret_key="x"), b"{}"),
        ("/", signed(stack, "/", b"Action=GetCallerIdentity", "sts", secret_key="x"), b"Action=GetCallerIdentity"),
        ("/", signed(stack, "/", b"{}", "dynamodb", secret_key="x"), b"{}"),
    ]
    for where, headers, sent in false:
        status, said = send(stack.aws_endpoint_url, "POST", where, headers, sent)
        assert status == 403, (where, headers, said)


@pytest.mark.parametrize(
    ("service", "operation", "arguments"),
    [
        ("lambda", "get_function_configuration", {"FunctionName": "tells"}),
        ("scheduler", "list_schedules", {"NamePrefix": "a b/+&=~é", "MaxResults": 5}),
        ("dynamodb", "list_tables", {}),
    ],
)
def test_clients_of_another_start_are_refused_by_every_service(
    stack: EmbeddedStack, service: str, operation: str, arguments: dict[str, Any]
) -> None:
    if service != "dynamodb":  # behind this gateway none answers
        getattr(aws_client(stack, service), operation)(**arguments)
    other = boto3.client(
        service,
        endpoint_url=stack.aws_endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="tenuto",
        aws_secret_access_key="tenuto",
        config=Config(retries={"total_max_attempts": 1}),
    )
    with pytest.raises(ClientError, match="not signed with the credentials of this stack"):
        getattr(other, operation)(**arguments)


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["C"]), max_size=12)


@settings(max_examples=examples(150), deadline=None)
@given(
    segments=st.lists(TEXT, max_size=3),
    query=st.dictionaries(TEXT.filter(bool), TEXT, max_size=3),
    body=st.binary(max_size=50),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
)
def test_what_botocore_signs_is_recognised_and_nothing_else(
    segments: list[str], query: dict[str, str], body: bytes, value: str
) -> None:
    from urllib.parse import quote, urlencode

    path = "/p" + "".join(f"/{quote(one, safe='')}" for one in segments if one.strip("."))
    url = f"http://127.0.0.1:1{path}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")
    request = AWSRequest("PUT", url, data=body, headers={"Host": "127.0.0.1:1", "X-Amz-Thing": value})
    SigV4Auth(Credentials("id", "key"), "lambda", "eu-west-1").add_auth(request)
    arrived = Request(
        "PUT", url.removeprefix("http://127.0.0.1:1"), {k.lower(): v.strip() for k, v in request.headers.items()}
    )
    arrived.body = body
    claim = claim_of(arrived)
    assert claim is not None
    assert proven(arrived, claim, "id", "key")
    assert not proven(arrived, claim, "id", "other key")
    assert not proven(arrived, claim, "another id", "key")
    arrived.body = body + b"x"
    assert not proven(arrived, claim, "id", "key")
    arrived.body = body
    arrived.headers["x-amz-thing"] += "x"
    assert not proven(arrived, claim, "id", "key")


@pytest.mark.parametrize("page", PAGES, ids=repr)
def test_no_page_takes_a_functions_work_or_answers_for_it(stack: EmbeddedStack, page: dict[str, str]) -> None:
    """The Runtime API of a worker has a port of its own, where only that worker asks."""
    address = tells(stack, "AWS_LAMBDA_RUNTIME_API")["AWS_LAMBDA_RUNTIME_API"]
    assert address is not None
    runtime = "/2018-06-01/runtime"
    for method, path in (("GET", "/invocation/next"), ("POST", "/init/error"), ("POST", "/invocation/x/response")):
        status, said = send(address, method, runtime + path, {"Content-Type": "text/plain", **page}, b"{}")
        assert status == 403, (path, said)
    assert tells(stack, "AWS_LAMBDA_RUNTIME_API") == {"AWS_LAMBDA_RUNTIME_API": address}


def test_a_function_gets_credentials_and_not_the_secret_of_the_admin_paths(stack: EmbeddedStack) -> None:
    own = stack.environment()
    told = tells(stack, ADMIN_VARIABLE, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert told == {ADMIN_VARIABLE: None, **{name: own[name] for name in list(told)[1:]}}
    assert stack._secret not in json.dumps(dict(os.environ)) + json.dumps(own)


def test_secrets_differ_from_start_to_start_and_stay_with_their_owner(stack: EmbeddedStack) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
        others = [EmbeddedStack() for _ in range(20)]
    secrets = [one._secret for one in (stack, *others)] + [
        one._credentials["AWS_SECRET_ACCESS_KEY"] for one in (stack, *others)
    ]
    assert len(set(secrets)) == len(secrets)
    assert min(len(bytes.fromhex(one)) for one in secrets) >= 16
    assert stack.aws_environment.stat().st_mode & 0o777 == 0o600
    shell = ["sh", "-c", '. "$0" && exec env', str(stack.aws_environment)]
    told = subprocess.run(shell, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}).stdout
    assert set(told.splitlines()) >= {f"{name}={value}" for name, value in stack.environment().items()}


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", ADMIN_VARIABLE])
def test_a_gateway_does_not_start_without_secrets(missing: str) -> None:
    command = [sys.executable, "-m", "tenuto_local.gateway", "--port", "1", "--dynamodb", NOWHERE]
    known = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", ADMIN_VARIABLE: "c"}
    environment = {**os.environ, **known}
    del environment[missing]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=20)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "must be set" in ended.stderr
