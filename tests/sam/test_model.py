"""Names that are derived from a project's: as AWS takes them, and never two alike."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tenuto_cli.sam.model import Function, Given, Project, Topic, problems
from tenuto_control.core.settings import label_problem

LOGICAL_ID = re.compile(r"[A-Za-z0-9]{1,255}")
labels = st.text("abzAZ019_-", min_size=1, max_size=64)
topics = st.text("abzAZ019_-.", min_size=1, max_size=249)


def function(name: str, **more: object) -> Function:
    fields: dict[str, object] = {"handler": "app:handler", "services": ("s",), **more}
    return Function(name=name, **fields)  # type: ignore[arg-type]  # each test gives what fits


def found(*functions: Function, taken: frozenset[str] = frozenset()) -> list[str]:
    return list(problems(Project(functions=functions, topics=()), taken))


@given(first=topics, second=topics)
def test_topics_have_logical_ids_of_their_own(first: str, second: str) -> None:
    assert LOGICAL_ID.fullmatch(Topic(first).logical)
    assume(first != second)
    assert Topic(first).logical != Topic(second).logical


@given(first=labels, second=labels)
def test_functions_are_told_apart_or_refused(first: str, second: str) -> None:
    assume(label_problem(first) is None)
    assume(label_problem(second) is None)
    assume(first != second)
    said = found(function(first), function(second))
    if not said:
        assert LOGICAL_ID.fullmatch(function(first).logical)
        assert function(first).logical != function(second).logical


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (function("dispatcher"), "rename the function"),
        (function("control_plane"), "rename the function"),
        (function("a" * 33), "shorten it"),
        (function("1st"), "begins with a letter"),
        (function("shop", services=()), "serves nothing"),
        (function("shop", environment={"A": Given("Name")}), "choose another name"),
        (function("shop", environment={"A": Given("ShopFunctionArn")}), "choose another name"),
    ],
)
def test_what_cannot_be_deployed_is_said(one: Function, problem: str) -> None:
    (said,) = found(one, taken=frozenset({"Name"}))
    assert said.endswith(problem) or problem in said


def test_two_functions_that_cloudformation_cannot_tell_apart() -> None:
    (said,) = found(function("a-12"), function("a1-2"), function("A12"))[:1]
    assert "rename one of the two" in said
