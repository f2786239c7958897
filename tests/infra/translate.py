"""What SAM makes of each template, offline: `python translate.py FILE ...` prints one JSON object, by file.

Owns the call of the translator, which lives in an environment of its own (.venv-aws) and so is run as a program.
Does not own what is expected of the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from samtranslator.parser.parser import Parser  # type: ignore[import-not-found]  # is in .venv-aws alone
from samtranslator.translator.translator import Translator  # type: ignore[import-not-found]  # is in .venv-aws alone
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-not-found]  # is in .venv-aws alone

REGION = "eu-west-1"


class Session:
    """Stands for boto3's session: the translator wants to know a region, and nothing else."""

    region_name = REGION


def translated(path: Path) -> dict[str, Any]:
    """The template after the SAM transform; one without it stays as it is."""
    template: dict[str, Any] = yaml_parse(path.read_text("utf-8"))
    if "Transform" not in template:
        return template
    for resource in template["Resources"].values():
        # Packaging uploads what was built and writes where it is.
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = "s3://bucket/key"
    parameters = {name: given.get("Default", "") for name, given in template.get("Parameters", {}).items()}
    translator = Translator({}, Parser(), None, Session())
    result: dict[str, Any] = translator.translate(sam_template=template, parameter_values=parameters)
    return result


if __name__ == "__main__":
    json.dump({name: translated(Path(name)) for name in sys.argv[1:]}, sys.stdout)
