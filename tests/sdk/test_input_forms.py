"""What a listing shows as an input: of the form that the handler takes."""

from __future__ import annotations

import enum
import json
from datetime import datetime
from typing import Any, Literal

import msgspec
import pydantic
import pytest

from tenuto.protocol.messages import HandlerManifest, InputForm, ServiceManifest
from tenuto.runtime.handlers import input_form
from tenuto.serde import serde_for
from tenuto_control.ingress.listing import as_text


class Order(msgspec.Struct):
    """A Struct with a field that has to be there."""

    id: str


class Model(pydantic.BaseModel):
    """The same of pydantic."""

    id: str


class Kind(enum.Enum):
    """Texts."""

    SMALL = "small"


class Level(enum.IntEnum):
    """Numbers."""

    HIGH = 3


@pytest.mark.parametrize(
    ("hint", "form"),
    [
        (None, "object"),
        (Any, "object"),
        (dict[str, int], "object"),
        (Order, "object"),
        (Model, "object"),
        (Order | None, "object"),
        (list[int], "array"),
        (tuple[int, str], "array"),
        (set[str], "array"),
        (list[Model], "array"),
        (str, "text"),
        (str | None, "text"),
        (Kind, "text"),
        (Literal["a", "b"], "text"),
        (datetime, "text"),
        (int, "number"),
        (int | None, "number"),
        (float, "number"),
        (Level, "number"),
        (bool, "boolean"),
        (bytes, "bytes"),
    ],
    ids=str,
)
def test_the_example_has_the_form_of_the_input(hint: Any, form: InputForm) -> None:
    assert input_form(serde_for(hint)) == form
    listed = as_text([ServiceManifest("s", False, (HandlerManifest("h", "stateless", input_form=form),))], "$URL")
    body = listed.rpartition('/h" ')[2].strip()
    if form == "bytes":
        assert body == "--data-binary bytes"
    else:
        json.loads(body.removeprefix("--json ").strip("'"))
