"""Stacks at the endpoint, deployed through CloudFormation as `sam deploy` does it.

Owns uploading archives, creating a stack and removing both; a stack that fails is told with the reasons of its
events. Does not own what a template holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.localstack.capabilities import why_lacking

CREATED_WITHIN_S = 300.0
POLL_S = 0.5
CAPABILITIES = ["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"]

Client = Callable[[str], Any]


class Stacks:
    """The stacks and archives of one run."""

    def __init__(self, client: Client, run_name: str) -> None:
        self._cloudformation = client("cloudformation")
        self._s3 = client("s3")
        self._run_name = run_name
        self._bucket: str | None = None
        self._archives: list[str] = []
        self._stacks: list[str] = []

    @property
    def bucket(self) -> str:
        """The bucket of the run's archives. Skips where the endpoint has no S3."""
        if self._bucket is None:
            try:
                self._s3.create_bucket(Bucket=self._run_name)
            except ClientError as error:
                if reason := why_lacking(error):
                    pytest.skip(f"no S3: {reason}")
                raise
            self._bucket = self._run_name
        return self._bucket

    def upload(self, name: str, archive: bytes) -> str:
        """The key under which the archive lies in the bucket."""
        self._s3.put_object(Bucket=self.bucket, Key=name, Body=archive)
        self._archives.append(name)
        return name

    def create(self, name: str, template: Path, parameters: Mapping[str, str]) -> dict[str, str]:
        """The outputs of the new stack, once it is complete. Skips where the endpoint has no CloudFormation."""
        stack = f"{self._run_name}-{name}"
        try:
            self._cloudformation.create_stack(
                StackName=stack,
                TemplateBody=template.read_text(),
                Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
                Capabilities=CAPABILITIES,
            )
        except ClientError as error:
            if reason := why_lacking(error):
                pytest.skip(f"no CloudFormation: {reason}")
            raise
        self._stacks.append(stack)
        described = self._settled(stack)
        if described["StackStatus"] != "CREATE_COMPLETE":
            pytest.fail(f"{stack} is {described['StackStatus']}: {self._reasons(stack)}", pytrace=False)
        return {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", ())}

    def remove(self) -> None:
        """Delete the stacks, the last one first, and the bucket."""
        for stack in reversed(self._stacks):
            self._cloudformation.delete_stack(StackName=stack)
            self._cloudformation.get_waiter("stack_delete_complete").wait(
                StackName=stack, WaiterConfig={"Delay": 1, "MaxAttempts": int(CREATED_WITHIN_S)}
            )
        if self._bucket is not None:
            for key in self._archives:
                self._s3.delete_object(Bucket=self._bucket, Key=key)
            self._s3.delete_bucket(Bucket=self._bucket)

    def _settled(self, stack: str) -> dict[str, Any]:
        deadline = time.monotonic() + CREATED_WITHIN_S
        while True:
            described: dict[str, Any] = self._cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
            if not described["StackStatus"].endswith("_IN_PROGRESS") or time.monotonic() > deadline:
                return described
            time.sleep(POLL_S)

    def _reasons(self, stack: str) -> str:
        events = self._cloudformation.describe_stack_events(StackName=stack)["StackEvents"]
        return "; ".join(
            f"{event['LogicalResourceId']}: {event['ResourceStatusReason']}"
            for event in reversed(events)
            if "FAILED" in event["ResourceStatus"] and "ResourceStatusReason" in event
        )
