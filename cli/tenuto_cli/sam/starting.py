"""The two files of a deployment that belong to the project: created if they do not exist, and never changed.

Owns their text. Pure.
"""

from __future__ import annotations

from typing import Final

TEMPLATE: Final = "template.yaml"
SAMCONFIG: Final = "samconfig.toml"

_TEMPLATE_TEXT: Final = """\
AWSTemplateFormatVersion: "2010-09-09"
Transform: AWS::Serverless-2016-10-31
Description: {name}

# This file is yours: add tables, queues and policies beside the stack `Tenuto`. What follows from tenuto.toml is in
# {folder}/, which `tenuto sam` writes. {folder}/tenuto.yaml names every parameter of the stack and what it means.

Parameters:
  BootstrapServers:
    Type: String
    Default: ""
    Description: host:port of Kafka's brokers, with commas between. Empty leaves Kafka out.

Resources:
  Tenuto:
    Type: AWS::Serverless::Application
    Properties:
      Location: {folder}/tenuto.yaml
      Parameters:
        Name: {stack}
        # ScaleToZero runs the control plane as a function that events wake; AlwaysOn runs it on Fargate.
        Shape: ScaleToZero
        BootstrapServers: !Ref BootstrapServers

Outputs:
  Url:
    Description: Calls go here, signed by IAM.
    Value: !GetAtt Tenuto.Outputs.HttpApiUrl
  TableName:
    Value: !GetAtt Tenuto.Outputs.TableName
"""

_SAMCONFIG_TEXT: Final = """\
version = 0.1

[default.deploy.parameters]
stack_name = "{stack}"
resolve_s3 = true
# The templates make roles, and are parts of one another.
capabilities = "CAPABILITY_IAM CAPABILITY_AUTO_EXPAND"
"""


def starting_files(name: str, folder: str) -> dict[str, str]:
    """The project's `template.yaml` and `samconfig.toml`. `folder` is what `tenuto sam` writes."""
    stack = stack_name(name)
    return {
        TEMPLATE: _TEMPLATE_TEXT.format(name=name, stack=stack, folder=folder),
        SAMCONFIG: _SAMCONFIG_TEXT.format(stack=stack),
    }


def stack_name(name: str) -> str:
    """A project's name as the deployment's: a letter, then letters, digits and hyphens, 31 at most."""
    kept = "".join(one if one.isascii() and one.isalnum() else "-" for one in name.lower()).strip("-")
    return (kept if kept[:1].isalpha() else f"tenuto-{kept}".rstrip("-"))[:31].rstrip("-")
