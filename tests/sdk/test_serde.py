"""Serdes: round trips by type hint, determinism, all that is refused, hints of handlers."""

from __future__ import annotations

import dataclasses
import enum
import functools
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypedDict,
    TypeVar,
)
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.errors import BadInputError, UnserialisableError
from tenuto.serde import (
    MISSING,
    BytesSerde,
    JsonSerde,
    PydanticSerde,
    TypedSerde,
    hints_of,
    output_serde_for,
    serde_for,
)

if TYPE_CHECKING:
    from tenuto.serde import Serde as CheckerOnly

IMPORT_LIMIT_MS = 15
SECRET = "s3cr3t"
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(msgspec.Struct, frozen=True):
    x: int
    y: float = 0.0
    raw: bytes = b""


class Tree(msgspec.Struct):
    value: int
    children: list[Tree] = []


class Circle(msgspec.Struct, tag=True, forbid_unknown_fields=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


class Guarded(msgspec.Struct):
    code: str

    def __post_init__(self) -> None:
        if self.code == SECRET:
            raise ValueError(f"{self.code} - at `$.{self.code}`")


@dataclasses.dataclass(frozen=True)
class Order:
    id: UUID
    at: datetime
    total: Decimal
    colours: list[Colour]


class Settings(TypedDict):
    name: str
    level: int | None


class Pair(NamedTuple):
    left: int
    right: str


class Address(pydantic.BaseModel):
    street: str
    zip_code: str = pydantic.Field(default="", alias="zipCode")


class User(pydantic.BaseModel):
    name: str
    age: int = 0
    since: datetime | None = None
    tags: dict[str, int] = {}
    addresses: list[Address] = []


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


@dataclasses.dataclass
class Holder:
    user: User


class StructHolder(msgspec.Struct):
    user: User
    spare: User | None = None


@pydantic.dataclasses.dataclass
class Checked:
    n: pydantic.PositiveInt


class Opaque:
    """A class that no serde knows."""


UserId = NewType("UserId", int)

floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
times = st.datetimes(timezones=st.just(UTC))
points = st.builds(Point, x=st.integers(), y=floats, raw=st.binary())
orders = st.builds(
    Order,
    id=st.uuids(),
    at=times,
    total=st.decimals(allow_nan=False, allow_infinity=False, places=2),
    colours=st.lists(st.sampled_from(Colour)),
)
users = st.builds(
    User,
    name=texts,
    age=st.integers(),
    since=st.none() | times,
    tags=st.dictionaries(texts, st.integers()),
    addresses=st.lists(st.builds(Address, street=texts, zipCode=texts), max_size=2),
)

TYPED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (str, texts),
    (bool, st.booleans()),
    (float, floats),
    (Point, points),
    (list[Point], st.lists(points)),
    (Order, orders),
    (Settings, st.fixed_dictionaries({"name": texts, "level": st.none() | st.integers()})),
    (Pair, st.builds(Pair, st.integers(), texts)),
    (Colour, st.sampled_from(Colour)),
    (datetime, times),
    (timedelta, st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=9))),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (UUID, st.uuids()),
    (UserId, st.integers()),
    (Point | None, st.none() | points),
    (int | str | None, st.none() | st.integers() | texts),
    (Circle | Square, st.builds(Circle, floats) | st.builds(Square, floats)),
    (dict[str, Order], st.dictionaries(texts, orders, max_size=3)),
    (dict[int, str], st.dictionaries(st.integers(), texts)),
    (dict[str, bytes], st.dictionaries(texts, st.binary())),
    (set[int], st.sets(st.integers())),
    (tuple[int, str], st.tuples(st.integers(), texts)),
    (dict[str, Any], st.dictionaries(texts, json_values, max_size=4)),
    (Tree, st.builds(Tree, st.integers(), st.lists(st.builds(Tree, st.integers()), max_size=3))),
    (User, users),
    (list[User], st.lists(users, max_size=3)),
    (Optional[User], st.none() | users),  # noqa: UP045 - the older spelling is what is tested
    (dict[str, User], st.dictionaries(texts, users, max_size=2)),
    (Cat | Dog, st.sampled_from([Cat(), Dog()])),
    (Holder, st.builds(Holder, users)),
    (StructHolder, st.builds(StructHolder, users, st.none() | users)),
    (Checked, st.builds(Checked, st.integers(min_value=1))),
    (Annotated[int, pydantic.Field(gt=0)], st.integers(min_value=1)),
]


@pytest.mark.parametrize(("hint", "values"), TYPED, ids=lambda item: str(item)[:40])
def test_typed_values_come_back_equal_and_encode_the_same_again(hint: Any, values: st.SearchStrategy[Any]) -> None:
    serde = serde_for(hint)

    @given(values)
    def round_trip(value: Any) -> None:
        data = serde.serialize(value)
        back = serde.deserialize(data)
        assert back == value
        assert type(back) is type(value)
        assert serde.serialize(back) == data

    round_trip()


@pytest.mark.parametrize("hint", [None, Any, object, type(None)])
@given(value=json_values)
def test_plain_json_comes_back_equal(hint: Any, value: Any) -> None:
    serde = serde_for(hint)
    back = serde.deserialize(serde.serialize(value))
    assert back == value
    assert type(back) is type(value)


@given(st.binary())
def test_bytes_are_left_alone(value: bytes) -> None:
    for hint in (bytes, bytes | None):
        serde = serde_for(hint)
        assert isinstance(serde, BytesSerde)
        assert serde.deserialize(serde.serialize(value)) == value == serde.serialize(value)


def test_each_hint_has_its_serde_and_keeps_it() -> None:
    for hint, kind in (
        (User, PydanticSerde),
        (Point, TypedSerde),
        (StructHolder, TypedSerde),
        (None, JsonSerde),
    ):
        assert isinstance(serde_for(hint), kind)
        assert serde_for(hint) is serde_for(hint)
    unhashable: Any = Annotated[int, ["unhashable"]]
    assert serde_for(unhashable).deserialize(b"1") == 1


# Writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (None, b"null"),
        ((1, 2), b"[1,2]"),
        ({3, 1, 2}, b"[1,2,3]"),
        ({2: "b", 1: {"z", "y"}}, b'{"1":["y","z"],"2":"b"}'),
        ({"b": 1, "a": 2}, b'{"a":2,"b":1}'),
        (Point(1, 2.0, b"\x00"), b'{"x":1,"y":2.0,"raw":"AA=="}'),
        (Address(street="s", zipCode="1"), b'{"street":"s","zipCode":"1"}'),
        ({"all": [Cat()]}, b'{"all":[{"kind":"cat"}]}'),
    ],
)
def test_what_leaves_without_a_hint_is_written_by_its_own_type(value: Any, data: bytes) -> None:
    for hint in (None, Any):
        assert output_serde_for(hint).serialize(value) == data


@given(st.dictionaries(texts, st.integers(), min_size=2))
def test_equal_values_give_equal_bytes(tags: dict[str, int]) -> None:
    turned = dict(reversed(tags.items()))
    assert serde_for(None).serialize(tags) == serde_for(None).serialize(turned)
    user = serde_for(User)
    assert user.serialize(User(name="n", tags=tags)) == user.serialize(User(name="n", tags=turned))


def test_bytes_do_not_depend_on_the_hash_seed() -> None:
    code = "from tenuto.serde import serde_for; print(serde_for(dict[str, set[str]]).serialize({'s': set('abcdef')}))"
    seen = {_python(code, PYTHONHASHSEED=str(seed)) for seed in range(3)}
    assert seen == {"""b'{"s":["a","b","c","d","e","f"]}'"""}


loop: list[Any] = []
loop.append(loop)


@pytest.mark.parametrize(
    ("hint", "value", "says"),
    [
        (None, Opaque(), "Opaque has no JSON form"),
        (None, {"a": [b"x"]}, "plain JSON has no bytes"),
        (None, b"x", "plain JSON has no bytes"),
        (dict[str, Any], {"a": [b"x"]}, "plain JSON has no bytes"),
        (dict, {"a": b"x"}, "plain JSON has no bytes"),
        (None, float("nan"), "no NaN"),
        (None, {"a": None, "b": float("inf")}, "no NaN"),
        (Point, Point(1, float("nan")), "no NaN"),
        (Annotated[float, pydantic.Field(gt=0)], float("inf"), "no NaN"),
        (None, "\ud800", "lone surrogate"),
        (None, loop, "contains itself"),
        pytest.param(None, {1, "a"}, "not supported between", id="a set of an int and a str"),
        (None, {(1, 2): 3}, "keys"),
        (User, 3, "pydantic could not write it"),
        (User, User.model_construct(name=[SECRET]), "pydantic could not write it"),
        (None, User.model_construct(name=[SECRET]), "pydantic could not write it"),
        (bytes, "text", "must be bytes"),
        (bytes | None, None, "clear a state value"),
    ],
    ids=lambda item: ascii(item)[:30],
)
def test_what_cannot_be_written_is_refused(hint: Any, value: Any, says: str) -> None:
    with pytest.raises(UnserialisableError) as caught:
        serde_for(hint).serialize(value)
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.status_code == 500
    assert type(value).__name__ in str(caught.value)


# Reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "data", "expected", "at", "says"),
    [
        (Point, b'{"x":"s3cr3t"}', "Point", "$.x", "Expected `int`, got `str`"),
        (Point, b"{}", "Point", "$", "missing required field `x`"),
        (dict[str, int], b'{"s3cr3t":"s3cr3t"}', "dict[str, int]", "$[...]", "Expected `int`"),
        (dict[int, int], b'{"s3cr3t":1}', "dict[int, int]", "key in $", "Expected `int`"),
        (Colour, b'"s3cr3t"', "Colour", "$", "allowed values"),
        (list[Colour], b'["s3cr3t"]', "Colour", "$[0]", "allowed values"),
        (Circle | Square, b'{"type":"s3cr3t"}', "Circle", "$.type", "tag"),
        (Circle | Square, b'{"type":"Circle","radius":1,"s3cr3t":1}', "Circle", "$", "unknown field"),
        (Guarded, b'{"code":"s3cr3t"}', "Guarded", "$", "ValueError"),
        (list[Guarded], b'[{"code":"s3cr3t"}]', "Guarded", "$[0]", "ValueError"),
        (UUID, b'"s3cr3t"', "UUID", "$", "Invalid UUID"),
        (Decimal, b'"s3cr3t"', "Decimal", "$", "Invalid decimal"),
        (datetime, b'"s3cr3t"', "datetime", "$", "Invalid RFC3339"),
        (StructHolder, b'{"user":{"name":["s3cr3t"]}}', "StructHolder", "$.user", "ValidationError"),
        (None, b"", "JSON", "$", "truncated"),
        (None, b"s3cr3t", "JSON", "$", "malformed"),
        (None, b'"\xff"', "JSON", "$", "not UTF-8"),
        (None, b"[" * 100_000, "JSON", "$", "too deeply"),
        (None, b"1e999", "JSON", "$", "out of range"),
        (User, b'{"name":["s3cr3t"]}', "User", "$.name", "expected text"),
        (User, b'{"name":"n","tags":{"s3cr3t":"s3cr3t"}}', "User", "$.tags[...]", "expected a whole number"),
        (User, b'{"name":"n","addresses":[{"zipCode":1}]}', "User", "$.addresses[0].street", "missing"),
        (
            Annotated[Cat | Dog, pydantic.Field(discriminator="kind")],
            b'{"kind":"s3cr3t"}',
            "Cat",
            "$",
            "the tag names no known type",
        ),
        (User, b"s3cr3t", "User", "$", "JSON is malformed"),
        (list[int] | list[User], b'["s3cr3t","s3cr3t","s3cr3t"]', "list", "$", "and 3 more"),
        (Checked, b'{"n":-1}', "Checked", "$.n", "greater than"),
    ],
    ids=lambda item: ascii(item)[:30],
)
def test_what_cannot_be_read_says_type_and_place_and_never_the_value(
    hint: Any, data: bytes, expected: str, at: str, says: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        serde_for(hint).deserialize(data)
    error = caught.value
    assert expected in error.expected
    assert says in error.problem
    assert error.at.startswith(at)
    assert error.status_code == 400
    assert SECRET not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


# Hints --------------------------------------------------------------------------------------------


class Unresolved(msgspec.Struct):
    later: "Nowhere"  # type: ignore[name-defined]  # noqa: F821, UP037 - the missing name is what is tested


@pytest.mark.parametrize(
    "hint",
    [
        Opaque,
        list[Opaque],
        Opaque | None,
        complex,
        Callable[[int], int],
        Unresolved,
        User | Opaque,
        set[int] | list[int],
        "User",
        5,
    ],
)
def test_an_unsupported_hint_is_refused_by_name(hint: Any) -> None:
    with pytest.raises(TypeError, match=r"is not supported|cannot be resolved") as caught:
        serde_for(hint)
    name = hint.__name__ if isinstance(hint, type) else str(hint)
    assert name.rpartition(".")[2] in str(caught.value)


async def both(ctx: CheckerOnly[Any], event: User) -> list[Point]:
    return []


async def bare(ctx, event):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201 - a handler without hints
    return event


async def no_input(ctx: object) -> None: ...
async def unresolvable(ctx: object, event: CheckerOnly[Any]) -> None: ...
async def no_context() -> None: ...
async def too_many(ctx: object, a: int, b: int) -> None: ...
async def keyword(ctx: object, *, event: int) -> None: ...
async def variadic(ctx: object, *event: int) -> None: ...


class Methods(Generic[T]):
    async def method(self, ctx: object, event: int) -> str: ...  # type: ignore[empty-body]  # hints only

    async def __call__(self, ctx: object, event: User) -> Point: ...  # type: ignore[empty-body]  # hints only


@functools.wraps(both)
async def wrapped(*args: Any) -> Any: ...


@pytest.mark.parametrize(
    ("handler", "hints"),
    [
        (both, (User, list[Point])),
        (wrapped, (User, list[Point])),
        (no_input, (MISSING, type(None))),
        (bare, (Any, Any)),
        (Methods[int]().method, (int, str)),
        (Methods[int](), (User, Point)),
    ],
)
def test_hints_of_handlers(handler: Callable[..., Any], hints: tuple[Any, Any]) -> None:
    assert hints_of(handler) == hints


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (unresolvable, r"the annotation 'CheckerOnly\[Any\]' of 'event' cannot be resolved"),
        (no_context, "no_context.*at most one input: "),
        (too_many, "too_many.*at most one input; leave out "),
        (keyword, "keyword.*at most one input; leave out "),
        (variadic, r"variadic.*at most one input; leave out '\*event': "),
    ],
)
def test_a_handler_of_another_shape_is_refused(handler: Callable[..., Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        hints_of(handler)


# Import cost --------------------------------------------------------------------------------------


def _python(code: str, **env: str) -> str:
    paths = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=paths | env
    )
    return done.stdout.strip()


def test_the_import_is_light_and_typed_serdes_import_no_pydantic() -> None:
    code = (
        "import sys, time, msgspec, tenuto; start = time.perf_counter(); import tenuto.serde as s; "
        "took = time.perf_counter() - start; "
        "s.serde_for(dict[str, int]).serialize({}); s.serde_for(None).serialize({}); "
        "print(took * 1e3, *({'pydantic', 'boto3', 'botocore', 'aiobotocore'} & set(sys.modules)))"
    )
    runs = [_python(code).split() for _ in range(3)]
    assert all(len(run) == 1 for run in runs), runs
    # The quickest of three: the limit is on the import's work, not on what else the machine does.
    assert min(float(run[0]) for run in runs) < IMPORT_LIMIT_MS


def test_several_problems_are_named_with_their_places_first() -> None:
    with pytest.raises(BadInputError) as caught:
        serde_for(Form).deserialize(b'{"count":"s3cr3t","extra":1}')
    assert caught.value.at == "$.id"
    assert str(caught.value) == (
        "a value is not a valid Form: $.id: is missing; $.dish: is missing; $.count: expected a whole number; "
        "and 1 more"
    )
    with pytest.raises(BadInputError) as caught:
        serde_for(Form).deserialize(b'{"id":"a","dish":"b","count":1}')
    assert str(caught.value) == "a value is not a valid Form: is missing (at $.at)"


class Form(pydantic.BaseModel):
    """A model with several fields that have to be there."""

    id: str
    dish: str
    count: int
    at: datetime


@pytest.mark.parametrize(
    ("hint", "data", "says"),
    [
        (str, b"1", "expected text"),
        (int, b"1.5", "expected a whole number"),
        (float, b'"x"', "expected a number"),
        (bool, b"[]", "expected true or false"),
        (list[int], b"1", "expected a list"),
        (dict[str, int], b"1", "expected an object"),
        (datetime, b'"x"', "expected a date and time"),
        (UUID, b'"x"', "expected a UUID"),
        (Colour, b'"x"', "not one of the allowed values"),
    ],
    ids=lambda item: ascii(item)[:30],
)
def test_what_pydantic_refuses_is_said_in_plain_words(hint: Any, data: bytes, says: str) -> None:
    model = pydantic.create_model("Holder", value=(hint, ...))
    with pytest.raises(BadInputError, match=rf"^a value is not a valid Holder: {says} \(at \$\.value\)$"):
        serde_for(model).deserialize(b'{"value":' + data + b"}")
