"""A deployment with a KMS key for payloads: who may use it, and who is told.

Owns the parameters PayloadKeyArn and ExistingTable. Does not own what encryption does (`tests/contract`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest

from tenuto.store.data_keys import CONTEXT, DATA_KEYS
from tests.infra.deployment import Templates, deploy
from tests.infra.test_least_privilege import TABLE, VARIANTS, grants, listed

KEY: Final = "arn:aws:kms:eu-west-1:111122223333:key/0b6f0a4c-1"
ONLY_DATA_KEYS: Final = {
    "ForAllValues:StringEquals": {"kms:EncryptionContextKeys": [CONTEXT]},
    # Without it, a request without a context would pass: all of no values are alike.
    "Null": {"kms:EncryptionContextKeys": "false"},
}

both_shapes = pytest.mark.parametrize("variant", ["scaled, MSK", "always on, MSK"])


def owner_of(variant: str) -> str:
    return "ControlPlane/TaskRole" if VARIANTS[variant].get("Shape") == "AlwaysOn" else "Dispatcher/DispatcherRole"


def told(templates: Templates, variant: str, name: str, **parameters: str) -> Any:
    """A variable of the control plane."""
    deployed = deploy(templates, **VARIANTS[variant], **parameters)
    if VARIANTS[variant].get("Shape") != "AlwaysOn":
        return deployed["Dispatcher/Dispatcher"].properties["Environment"]["Variables"][name]
    (container,) = deployed["ControlPlane/Task"].properties["ContainerDefinitions"]
    return next(one["Value"] for one in container["Environment"] if one["Name"] == name)


@both_shapes
def test_the_key_is_used_by_who_encrypts_and_for_data_keys_alone(templates: Templates, variant: str) -> None:
    deployed = deploy(templates, **VARIANTS[variant], PayloadKeyArn=KEY)
    found: dict[str, Mapping[str, Any]] = {}
    for name, statement in grants(deployed):
        if any(action.startswith("kms:") for action in listed(statement["Action"])):
            assert name not in found, "one statement says it all"
            found[name] = statement
    assert {name: sorted(listed(one["Action"])) for name, one in found.items()} == {
        owner_of(variant): ["kms:Decrypt", "kms:GenerateDataKey"],
        "Functions/UserUpdatesRole": ["kms:Decrypt"],
    }
    assert all(one["Resource"] == KEY and one["Condition"] == ONLY_DATA_KEYS for one in found.values())


@both_shapes
def test_a_function_reads_the_wrapped_keys_and_cannot_write_them(templates: Templates, variant: str) -> None:
    deployed = deploy(templates, **VARIANTS[variant], PayloadKeyArn=KEY)
    reads = [
        statement
        for name, statement in grants(deployed)
        if name == "Functions/UserUpdatesRole" and DATA_KEYS.pk in str(statement.get("Condition"))
    ]
    (statement,) = reads
    assert statement["Action"] == "dynamodb:GetItem"
    assert statement["Resource"] == TABLE
    assert statement["Condition"] == {
        "ForAllValues:StringEquals": {"dynamodb:LeadingKeys": [DATA_KEYS.pk]},
        "Null": {"dynamodb:LeadingKeys": "false"},
    }


@both_shapes
def test_the_control_plane_is_told_of_the_key(templates: Templates, variant: str) -> None:
    assert told(templates, variant, "TENUTO_KMS_KEY_ID", PayloadKeyArn=KEY) == KEY
    assert told(templates, variant, "TENUTO_KMS_KEY_ID") == ""


@both_shapes
def test_without_a_key_nobody_may_use_one(templates: Templates, variant: str) -> None:
    for _, statement in grants(deploy(templates, **VARIANTS[variant])):
        assert not [action for action in listed(statement["Action"]) if action.startswith("kms:")]


@both_shapes
def test_an_existing_table_takes_the_place_of_an_own_one(templates: Templates, variant: str) -> None:
    restored = {"ExistingTable": "restored"}
    deployed = deploy(templates, **VARIANTS[variant], **restored)
    assert "AWS::DynamoDB::Table" not in {resource.type for resource in deployed.values()}
    tables = {
        resource
        for _, statement in grants(deployed)
        for resource in listed(statement["Resource"])
        if any(action.startswith("dynamodb:") for action in listed(statement["Action"]))
    }
    assert tables == {"arn:aws:dynamodb:eu-west-1:111122223333:table/restored"}
    assert told(templates, variant, "TENUTO_TABLE", **restored) == "restored"
