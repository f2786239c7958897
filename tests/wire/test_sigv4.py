"""Signatures are those that botocore makes, for any request; the key of a day is made once.

Owns the equality. Does not own whether AWS accepts them (`infra/verify_on_aws.sh` does).
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import botocore.auth
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenuto.wire import signer as signing
from tenuto.wire.destination import Destination, Proxy, destination
from tenuto.wire.signer import HEADS_BEGUN_MAX, Signer
from tenuto.wire.sigv4 import UNSIGNED, Credentials, Request, SigningKey, signing_key

NOW = datetime(2026, 11, 29, 21, 40, 1, tzinfo=UTC)
SAFE = st.text("abcXYZ019-_.~", min_size=1, max_size=12)
PATHS = st.lists(SAFE | st.sampled_from(["", ".", "..", "%3A", "arn%3Aaws%3Alambda", "a%20b"]), max_size=5).map(
    lambda segments: "/" + "/".join(segments)
)
QUERIES = st.lists(st.tuples(SAFE, SAFE), max_size=4).map(lambda pairs: "&".join(f"{k}={v}" for k, v in pairs))
VALUES = st.text([chr(c) for c in range(32, 127)], max_size=40)
HEADERS = st.dictionaries(
    st.sampled_from(["x-amz-target", "content-type", "x-amz-meta", "x-a", "zulu", *sorted(UNSIGNED)]),
    VALUES,
    max_size=8,
)
CREDENTIALS = st.builds(Credentials, SAFE, st.text(max_size=40), st.none() | st.text("abcDEF+/=", min_size=1))
ENDPOINTS = [
    "https://dynamodb.eu-central-1.amazonaws.com",
    "http://127.0.0.1:4566/some",
    "https://h:8443",
    "http://[::1]:80",
]


@pytest.fixture(scope="module", autouse=True)
def _at() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.auth, "get_current_datetime", lambda **_: NOW.replace(tzinfo=None))
        yield


def headers_of(head: bytes) -> dict[str, str]:
    """The headers in the head of a request."""
    lines = head.decode().split("\r\n")[1:-2]
    return dict(line.split(": ", 1) for line in lines)


def botocores(to: Destination, request: Request, credentials: Credentials, url: str) -> str:
    """The Authorization that botocore gives this request."""
    same = AWSRequest(
        request.method,
        url + request.path + (f"?{request.query}" if request.query else ""),
        headers=dict(request.headers),
        data=request.body,
    )
    frozen = ReadOnlyCredentials(credentials.access_key, credentials.secret_key, credentials.token)
    SigV4Auth(frozen, to.service, to.region).add_auth(same)
    found: str = same.headers["Authorization"]
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.builds(Request, PATHS, HEADERS, st.binary(max_size=300), query=QUERIES, method=st.sampled_from(["POST", "GET"])),
    CREDENTIALS,
    st.sampled_from(ENDPOINTS),
)
def test_signatures_are_botocores(request: Request, credentials: Credentials, url: str) -> None:
    to = destination(url, service="dynamodb", region="eu-central-1")
    signed = Signer(to).signed_head(request, credentials, NOW.timestamp())
    base = url.removesuffix("/some")
    assert headers_of(signed)["authorization"] == botocores(to, request, credentials, base)


@given(
    st.lists(
        st.tuples(
            st.builds(
                Request,
                st.sampled_from(["/", "/a"]),
                st.sampled_from([{}, {"x-amz-target": "A"}, {"x-amz-target": "B", "user-agent": "u"}]),
                st.binary(max_size=4),
                query=st.sampled_from(["", "q=1"]),
                method=st.sampled_from(["POST", "GET"]),
            ),
            st.sampled_from([Credentials("a", "s"), Credentials("a", "s", "t"), Credentials("a", "s2")]),
            st.sampled_from([0, 1, 86_400]),
        ),
        max_size=12,
    ),
    st.sampled_from([1, 2, HEADS_BEGUN_MAX]),
)
def test_what_is_remembered_between_requests_changes_no_head(
    asked: list[tuple[Request, Credentials, int]], most: int
) -> None:
    to = destination("https://h", service="dynamodb", region="eu-central-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signing, "HEADS_BEGUN_MAX", most)
        kept = Signer(to)
        for request, credentials, later_s in asked:
            at_s = NOW.timestamp() + later_s
            assert kept.signed_head(request, credentials, at_s) == Signer(to).signed_head(request, credentials, at_s)


@given(st.binary(min_size=32, max_size=32), st.lists(st.binary(max_size=200), max_size=3))
def test_one_key_signs_many_texts_as_hmac_does(key: bytes, texts: list[bytes]) -> None:
    kept = SigningKey(key)
    assert [kept.sign(text) for text in texts] == [hmac.digest(key, text, "sha256").hex() for text in texts]


def test_the_key_of_a_day_is_made_once_and_for_each_credentials_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []

    def counted(secret_key: str, day: str, region: str, service: str) -> bytes:
        made.append((secret_key, day))
        return signing_key(secret_key, day, region, service)

    monkeypatch.setattr(signing, "signing_key", counted)
    to = destination("https://h", service="lambda", region="us-east-1")
    signer, request = Signer(to), Request("/", {}, b"")
    first, second = Credentials("a", "s1"), Credentials("a", "s2", "token")
    at_s = NOW.timestamp()
    for credentials, later_s in ((first, 0), (first, 3_600), (second, 3_600), (first, 3_600), (first, 86_400)):
        signer.signed_head(request, credentials, at_s + later_s)
    assert made == [("s1", "20261129"), ("s2", "20261129"), ("s1", "20261129"), ("s1", "20261130")]


def test_a_clock_that_is_wrong_is_put_right_once() -> None:
    to = destination("https://h", service="dynamodb", region="us-east-1")
    signer = Signer(to)
    date = format_datetime(NOW, usegmt=True)
    wrong_s = NOW.timestamp() - 7_200
    assert not signer.learns("ValidationException", date, wrong_s, 0)
    assert not signer.learns("InvalidSignatureException", None, wrong_s, 0)
    assert not signer.learns("InvalidSignatureException", "yesterday", wrong_s, 0)
    assert not signer.learns("InvalidSignatureException", date, NOW.timestamp() - 5, 0)
    assert signer.learns("InvalidSignatureException", date, wrong_s, 0)
    assert not signer.learns("InvalidSignatureException", date, wrong_s, signer.skew_s)
    # Another request was under way meanwhile, and was refused for the same reason.
    assert signer.learns("InvalidSignatureException", date, wrong_s, 0)
    head = signer.signed_head(Request("/", {}, b""), Credentials("a", "s"), wrong_s)
    assert headers_of(head)["x-amz-date"] == "20261129T214001Z"


def test_a_proxy_for_plain_http_is_given_the_whole_url_and_its_own_authorization() -> None:
    request, credentials = Request("/p", {}, b"x", "q=1"), Credentials("a", "s")
    to = destination("http://h:99", service="s", region="r", proxy=Proxy("proxy", 1, "Basic eA=="))
    head = Signer(to).signed_head(request, credentials, NOW.timestamp())
    assert head.startswith(b"POST http://h:99/p?q=1 HTTP/1.1\r\n")
    headers = headers_of(head)
    assert headers["proxy-authorization"] == "Basic eA=="
    assert headers["authorization"] == botocores(to, request, credentials, "http://h:99")


def test_secrets_are_not_shown() -> None:
    assert "s3cret" not in repr((Credentials("a", "s3cret", "s3cret"), Proxy("h", 1, "s3cret")))
