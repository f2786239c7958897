"""What a deployment would hold, given its parameters: conditions decided, nested stacks followed, names resolved.

Owns the few intrinsic functions that the templates use. A reference to a resource becomes text: `Stack/Resource` for
its `Ref`, with `.Attribute` behind it for a `GetAtt`; so policies can be compared with literal lists. Does not own what
is expected, nor any judgement of policies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

REGION: Final = "eu-west-1"
ACCOUNT: Final = "111122223333"
PSEUDO: Final[Mapping[str, Any]] = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::URLSuffix": "amazonaws.com",
}
STACK_TYPE: Final = "AWS::CloudFormation::Stack"
NOTHING: Final = object()
"""What `AWS::NoValue` leaves."""

PLAIN: Final[Mapping[str, Callable[[list[Any]], Any]]] = {
    "Fn::Equals": lambda values: str(values[0]) == str(values[1]),
    "Fn::Not": lambda values: not values[0],
    "Fn::And": all,
    "Fn::Or": any,
    "Fn::Join": lambda values: str(values[0]).join(map(str, values[1])),
    "Fn::Split": lambda values: str(values[1]).split(str(values[0])),
    "Fn::Select": lambda values: values[1][int(values[0])],
}
"""Functions of nothing but their arguments."""

Templates = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource that would exist. `name` is `Stack/LogicalId`; the root stack's name is empty."""

    name: str
    type: str
    properties: Mapping[str, Any]


def deploy(templates: Templates, root: str = "template.yaml", **parameters: Any) -> dict[str, Resource]:
    """Every resource of the root stack and the stacks below it, by name."""
    return {resource.name: resource for resource in _Stack(templates, root, "", parameters).all_resources()}


class _Stack:
    """One stack: a template with its parameters."""

    def __init__(self, templates: Templates, file: str, name: str, parameters: Mapping[str, Any]) -> None:
        self._templates = templates
        self._template = templates[file]
        self._name = name
        self._nested: dict[str, _Stack] = {}
        declared = self._template.get("Parameters", {})
        unknown = parameters.keys() - declared.keys()
        assert not unknown, f"{file} has no parameters {unknown}"
        self._parameters: dict[str, Any] = {}
        for parameter, declaration in declared.items():
            value = parameters.get(parameter, declaration.get("Default"))
            assert value is not None, f"{file}: {parameter} has neither a value nor a default"
            allowed = declaration.get("AllowedValues")
            assert allowed is None or str(value) in map(str, allowed), f"{file}: {parameter}={value}"
            listed = declaration["Type"] == "CommaDelimitedList"
            self._parameters[parameter] = str(value).split(",") if listed else str(value)

    def all_resources(self) -> Iterator[Resource]:
        """The resources whose conditions hold, nested stacks replaced by what is in them."""
        for name, resource in self._template["Resources"].items():
            if not self._holds(resource.get("Condition")):
                continue
            if resource["Type"] == STACK_TYPE:
                yield from self._below(name).all_resources()
            else:
                yield Resource(self._path(name), resource["Type"], self._value(resource.get("Properties", {})))

    def output(self, name: str) -> Any:
        """The value of an output."""
        return self._value(self._template["Outputs"][name]["Value"])

    def _below(self, name: str) -> _Stack:
        if name not in self._nested:
            resource = self._template["Resources"][name]
            assert self._holds(resource.get("Condition")), f"{self._path(name)} is referred to but left out"
            properties = resource["Properties"]
            parameters = {key: self._value(value) for key, value in properties.get("Parameters", {}).items()}
            self._nested[name] = _Stack(self._templates, properties["TemplateURL"], self._path(name), parameters)
        return self._nested[name]

    def _path(self, name: str) -> str:
        return f"{self._name}/{name}" if self._name else name

    def _holds(self, condition: str | None) -> bool:
        return condition is None or bool(self._value(self._template["Conditions"][condition]))

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [one for one in map(self._value, value) if one is not NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((function, argument),) = value.items()
            if function in ("Ref", "Condition") or function.startswith("Fn::"):
                return self._call(function, argument)
        resolved = {key: self._value(one) for key, one in value.items()}
        return {key: one for key, one in resolved.items() if one is not NOTHING}

    def _call(self, function: str, argument: Any) -> Any:
        match function:
            case "Ref":
                return self._ref(argument)
            case "Condition":
                return self._holds(argument)
            case "Fn::If":
                condition, then, otherwise = argument
                return self._value(then if self._holds(condition) else otherwise)
            case "Fn::GetAtt":
                return self._attribute(argument.split(".", 1) if isinstance(argument, str) else argument)
            case "Fn::Sub":
                text, names = (argument, {}) if isinstance(argument, str) else argument
                given = {name: self._value(value) for name, value in names.items()}
                return re.sub(r"\$\{([^}!]+)\}", lambda match: str(self._substitute(match[1], given)), text)
            case "Fn::FindInMap":
                table, row, column = self._value(argument)
                return self._template["Mappings"][table][row][column]
            case _:
                assert function in PLAIN, f"{function} is not among the functions that the templates use"
                return PLAIN[function](self._value(argument))

    def _substitute(self, name: str, given: Mapping[str, Any]) -> Any:
        if name in given:
            return given[name]
        return self._attribute(name.split(".", 1)) if "." in name else self._ref(name)

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return NOTHING
        if name in PSEUDO:
            return PSEUDO[name]
        return self._parameters[name] if name in self._parameters else self._path(self._present(name))

    def _attribute(self, argument: list[str]) -> Any:
        name, attribute = argument
        if self._template["Resources"][name]["Type"] == STACK_TYPE:
            return self._below(name).output(attribute.removeprefix("Outputs."))
        return f"{self._path(self._present(name))}.{attribute}"

    def _present(self, name: str) -> str:
        assert name in self._template["Resources"], f"{self._path(name)} does not exist"
        assert self._holds(self._template["Resources"][name].get("Condition")), f"{self._path(name)} is left out"
        return name
