"""DynamoDB: the conditional write the whole protocol rests on, directly and through the one endpoint."""

import http.client
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
from botocore.exceptions import ClientError

from tenuto_local import EmbeddedStack
from tests.support.stack import aws_client

pytestmark = pytest.mark.stack


@pytest.fixture(scope="session")
def table(stack: EmbeddedStack) -> Any:
    """A client of DynamoDB Local itself, with the table `lanes` in it."""
    client = boto3.client(
        "dynamodb",
        endpoint_url=stack.dynamodb_endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="another",
        aws_secret_access_key="another",
    )
    client.create_table(
        TableName="lanes",
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return client


def advance(client: Any, key: str, seen: str) -> Any:
    return client.update_item(
        TableName="lanes",
        Key={"pk": {"S": key}},
        UpdateExpression="ADD ver :one",
        ConditionExpression="attribute_not_exists(ver) OR ver = :seen",
        ExpressionAttributeValues={":one": {"N": "1"}, ":seen": {"N": seen}},
        ReturnValues="ALL_NEW",
        ReturnValuesOnConditionCheckFailure="ALL_OLD",
    )


def test_a_refused_condition_comes_back_with_the_item(table: Any) -> None:
    assert advance(table, "a", "0")["Attributes"]["ver"] == {"N": "1"}
    with pytest.raises(ClientError) as refused:
        advance(table, "a", "7")
    assert refused.value.response["Error"]["Code"] == "ConditionalCheckFailedException"
    assert cast("Any", refused.value.response)["Item"]["ver"] == {"N": "1"}


def test_the_one_endpoint_reaches_the_same_table(stack: EmbeddedStack, table: Any) -> None:
    through_gateway = aws_client(stack, "dynamodb")
    advance(through_gateway, "b", "0")
    assert table.get_item(TableName="lanes", Key={"pk": {"S": "b"}})["Item"]["ver"] == {"N": "1"}
    with pytest.raises(through_gateway.exceptions.ConditionalCheckFailedException) as refused:
        advance(through_gateway, "b", "7")
    assert refused.value.response["Item"]["ver"] == {"N": "1"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
    ],
    ids=repr,
)
def test_no_web_page_reaches_it(stack: EmbeddedStack, headers: dict[str, str], status: int) -> None:
    connection = http.client.HTTPConnection(stack.dynamodb_endpoint_url.removeprefix("http://"), timeout=10)
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/dynamodb/aws4_request, Signature=0"}
    asked = {"X-Amz-Target": "DynamoDB_20120810.ListTables", "Content-Type": "application/x-amz-json-1.0", **signed}
    try:
        connection.request("POST", "/", b"{}", {**asked, **headers})
        assert connection.getresponse().status == status
        connection.close()
        if status == 403:
            preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-amz-target"}
            connection.request("OPTIONS", "/", b"", {**preflight, **headers})
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("Access-Control-Allow-Origin")) == (403, None)
    finally:
        connection.close()


def test_it_listens_on_the_loopback_interface_only(stack: EmbeddedStack) -> None:
    port = int(stack.dynamodb_endpoint_url.rsplit(":", 1)[1])
    # Java listens on dual-stack sockets, so the address may be the IPv4 one or the same mapped into IPv6.
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rsplit(":", 1)[1], 16) == port:
                found.add(address.rsplit(":", 1)[0])
    assert found
    assert found <= loopback
