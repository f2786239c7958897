"""Nothing is lost in serialisation: what is read back equals what was written, or the write is refused.

Owns the rule over generated types of all four families (plain JSON, msgspec Structs, classes of the standard library,
pydantic models) with values that are theirs and values that are not. Does not own the forms of the JSON
(`tests/sdk/test_serde`).

The oracle is `facts`: a normal form of a value in which everything that could be lost has its place. It shares no code
with the comparison in `tenuto.serde`.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import enum
import functools
import math
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Generic, Literal, NamedTuple, Required, Self, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from tenuto import Context, ObjectContext, RunOptions, Service, UnserialisableError, VirtualObject
from tenuto.protocol.ids import AwakeableId, InvocationId, Lane
from tenuto.serde import JsonSerde, OwnTypesSerde, Serde, output_serde_for, serde_for
from tests.support.in_process import InProcess

T = TypeVar("T")
BERLIN = ZoneInfo("Europe/Berlin")
SECRET = "s3cr3t"


# The oracle ---------------------------------------------------------------------------------------


def facts(value: Any) -> Any:
    """All that must not get lost of a value, as something that `==` compares as wanted.

    Numbers and texts stand for themselves, whether a subclass without attributes of its own, an Enum with a value mixed
    in, or a float that was an int. An object is its type and all its attributes.
    """
    if isinstance(value, enum.Enum):
        is_mixed = issubclass(type(value), str | int)
        return facts(value.value) if is_mixed else ("enum", type(value).__name__, value.name)
    if value is None or isinstance(value, bool):
        return ("constant", repr(value))
    if isinstance(value, float) and not math.isfinite(value):
        return ("nan", object()) if math.isnan(value) else ("number", repr(value))
    if isinstance(value, int | float):
        return ("number", Fraction(value), isinstance(value, float) and not value and math.copysign(1, value) < 0)
    if isinstance(value, Decimal):
        return ("nan", object()) if value.is_nan() else _facts_of_decimal(value)
    if isinstance(value, str):
        return ("text", str.__str__(value), _attributes(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return ("bytes", bytes(value))
    if isinstance(value, datetime | time):
        fold = value.fold if value.tzinfo is None else 0
        return (type(value).__name__, value.replace(tzinfo=None, fold=0), fold, _zone(value.tzinfo))
    if isinstance(value, date | timedelta | UUID):
        return (type(value).__name__, value)
    return _facts_of_container(value)


def _facts_of_decimal(value: Decimal) -> Any:
    sign, digits, exponent = value.as_tuple()
    if exponent == 0 and (any(digits) or not sign):
        return ("number", Fraction(value), False)
    return ("decimal", value.as_tuple())


def _zone(zone: tzinfo | None) -> Any:
    return None if zone is None else zone.utcoffset(None) if zone.utcoffset(None) is not None else ("zone", str(zone))


def _attributes(value: Any) -> Any:
    return sorted((name, facts(item)) for name, item in getattr(value, "__dict__", {}).items())


def _facts_of_container(value: Any) -> Any:
    if isinstance(value, dict):
        return ("dict", [(facts(key), facts(item)) for key, item in sorted(value.items(), key=lambda kv: repr(kv[0]))])
    if isinstance(value, list):
        return ("list", [facts(item) for item in value])
    if isinstance(value, set | frozenset):
        return ("set", sorted((facts(item) for item in value), key=repr))
    if isinstance(value, tuple):
        return ("tuple", type(value).__name__, [facts(item) for item in value])
    cached = {
        name for name in dir(type(value)) if isinstance(getattr(type(value), name, None), functools.cached_property)
    }
    names = {*getattr(value, "__struct_fields__", ()), *getattr(value, "__dict__", ())} - cached
    if dataclasses.is_dataclass(value):
        names |= {field.name for field in dataclasses.fields(value)}
    hidden = [getattr(value, f"__pydantic_{group}__", None) or {} for group in ("extra", "private")]
    return (
        "object",
        type(value),
        [(name, facts(getattr(value, name, None))) for name in sorted(names)],
        [facts(group) for group in hidden],
    )


def written(serde: Serde[Any], value: Any) -> bytes | None:
    """The bytes, None when the write is refused as it should be: with the type, and without the value."""
    try:
        return serde.serialize(value)
    except UnserialisableError as error:
        text = str(error)
    assert SECRET not in text
    assert type(value).__name__ in text
    return None


def assert_nothing_is_lost(hint: Any, value: Any) -> bool:
    """The rule, for one value under one hint. Returns whether the value was taken."""
    serde = serde_for(hint)
    before = facts(value)
    data = written(serde, value)
    if data is None:
        return False
    back = serde.deserialize(data)
    assert facts(back) == before, (hint, value, data, back)
    again = serde.deserialize(serde.serialize(back))
    assert facts(again) == before, (hint, value, data, again)
    return True


# Types of all families ----------------------------------------------------------------------------


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Status(enum.StrEnum):
    OPEN = "open"
    DONE = "done"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def local(year: int, month: int = 1, day: int = 1, hour: int = 0, fold: int = 0) -> datetime:
    """A datetime without a zone, which is what is tested."""
    return datetime(year, month, day, hour, 30, tzinfo=None, fold=fold)  # noqa: DTZ001 - says it: without a zone


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
floats = st.floats(allow_nan=False, allow_infinity=False)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
aware = st.datetimes(min_value=local(2), max_value=local(9998), timezones=st.just(UTC) | offsets)
naive = st.datetimes().map(lambda moment: moment.replace(fold=0))

LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (float, floats),
    (bool, st.booleans()),
    (str, texts),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (UUID, st.uuids()),
    (date, st.dates()),
    (datetime, aware | naive),
    (timedelta, st.timedeltas(timedelta(days=-9000), timedelta(days=9000))),
    (Level, st.sampled_from(Level)),
    (Status, st.sampled_from(Status)),
    (Colour, st.sampled_from(Colour)),
    (Literal["a", "b"], st.sampled_from(["a", "b"])),
    (Any, st.none() | st.integers() | texts | st.lists(st.booleans(), max_size=2)),
]
KEYS: list[tuple[Any, st.SearchStrategy[Any]]] = [LEAVES[index] for index in (0, 3, 5, 6, 10)]

Typed = tuple[Any, st.SearchStrategy[Any]]
FAMILIES = ("struct", "dataclass", "slotted", "typed_dict", "named_tuple", "model", "root_model")
counter = iter(range(1_000_000_000))


def of(container: Any, *items: Any) -> Any:
    """`container[items]`, made at run time."""
    return container[items if len(items) > 1 else items[0]]


def _made(family: str, fields: list[Typed]) -> Typed:
    """A class of a family with these fields, and its values."""
    name = f"{family.title().replace('_', '')}{next(counter)}"
    hints: dict[str, Any] = {f"f{index}": hint for index, (hint, _) in enumerate(fields)}
    values = {f"f{index}": strategy for index, (_, strategy) in enumerate(fields)}
    cls: Any
    match family:
        case "struct":
            cls = msgspec.defstruct(name, list(hints.items()), tag=True)
        case "dataclass" | "slotted":
            cls = dataclasses.make_dataclass(name, list(hints.items()), slots=family == "slotted")
        case "typed_dict":
            made: Any = TypedDict
            return made(name, hints), st.fixed_dictionaries(values)
        case "named_tuple":
            made = NamedTuple
            cls = made(name, list(hints.items()))
        case "model":
            make: Any = pydantic.create_model
            cls = make(name, **{field: (hint, ...) for field, hint in hints.items()})
        case _:
            cls = of(pydantic.RootModel, of(tuple, *hints.values(), bool))
            return cls, st.tuples(*values.values(), st.booleans()).map(cls)
    return cls, st.builds(cls, **values)


@st.composite
def typed(draw: st.DrawFn, families: tuple[str, ...] = FAMILIES, depth: int = 2) -> Typed:
    """A hint, and a strategy for values that are exactly of it."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        leaf: Typed = draw(st.sampled_from(LEAVES))
        return leaf
    inner = functools.partial(typed, families, depth - 1)
    hint, values = draw(inner())
    match draw(st.sampled_from(("list", "dict", "tuple", "optional", "set", *families))):
        case "list":
            return of(list, hint), st.lists(values, max_size=3)
        case "dict":
            key, keys = draw(st.sampled_from(KEYS))
            return of(dict, key, hint), st.dictionaries(keys, values, max_size=3)
        case "tuple":
            return of(tuple, hint, ...), st.lists(values, max_size=3).map(tuple)
        case "optional":
            return (hint, values) if hint is Any else (hint | None, st.none() | values)
        case "set":
            key, keys = draw(st.sampled_from(KEYS))
            return of(set, key), st.sets(keys, max_size=3)
        case "struct":
            # Pydantic takes no Struct, so what holds one is msgspec's; its own types are welcome in it.
            return _made("struct", [(hint, values), draw(inner())])
        case family:
            # A model with a Struct in it has no schema: its fields come from the others.
            others = tuple(name for name in families if name != "struct")
            model = family in ("model", "root_model")
            fields = [draw(typed(others, depth - 1)) for _ in range(2)] if model else [(hint, values)]
            return _made(family, fields)


quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(st.data())
def test_values_of_exactly_the_declared_type_come_back_and_are_never_refused(data: st.DataObject) -> None:
    hint, values = data.draw(typed().filter(_is_supported))
    assert assert_nothing_is_lost(hint, data.draw(values))


def _is_supported(made: Typed) -> bool:
    """Pydantic and Structs cannot be mixed at will, and such hints are refused where they are declared."""
    try:
        serde_for(made[0])
    except TypeError:
        return False
    return True


# Values that are not of the type ------------------------------------------------------------------


class Text(str):  # noqa: SLOT000 - its `__dict__` is what is tested
    """A subclass with attributes of its own, though it has none when it is new."""


class Marked(str):  # noqa: SLOT000 - its `__dict__` is what is tested
    def __new__(cls, text: str, mark: str = "") -> Self:
        made = super().__new__(cls, text)
        made.mark = mark
        return made

    mark: str


class Moment(datetime):
    """As pendulum and freezegun have it."""


class Animal(pydantic.BaseModel):
    name: str = "x"


class Dog(Animal):
    breed: str = "terrier"


class StructAnimal(msgspec.Struct):
    name: str = "x"


class StructDog(StructAnimal):
    breed: str = "terrier"


@dataclasses.dataclass
class DataAnimal:
    name: str = "x"


@dataclasses.dataclass
class DataDog(DataAnimal):
    breed: str = "terrier"


@dataclasses.dataclass
class AnyAnimal(DataAnimal):
    """Says that it is equal to every animal."""

    breed: str = "terrier"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DataAnimal)

    __hash__ = None  # type: ignore[assignment]  # as the dataclass has it


class Pair(NamedTuple):
    left: int = 1
    right: int = 2


class Sparse(TypedDict, total=False):
    name: Required[str]
    age: int


STRANGERS: list[Callable[[], Any]] = [
    Animal,
    Dog,
    StructAnimal,
    StructDog,
    DataAnimal,
    DataDog,
    AnyAnimal,
    Pair,
    lambda: {"name": "n", "breed": "b"},
    list,
    dict,
    tuple,
    lambda: {"name": "n"},
    lambda: UUID(int=0),
    lambda: {local(2026): 1},
    lambda: [1, 2],
    lambda: {1: "a"},
    lambda: {1: "a", "1": "b"},
    lambda: {None: 1, True: 2},
    lambda: {1.5: 1},
    lambda: {(1, 2): 3},
    lambda: {Status.OPEN: 1},
    lambda: {date(2026, 1, 1): 1},
    lambda: {datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN): 1},
    lambda: {1, 2},
    lambda: frozenset({"a"}),
    lambda: {1, "a"},
    lambda: (1, 2),
    lambda: [(1, 2)],
    lambda: ((),),
    lambda: True,
    lambda: 1,
    lambda: 1.0,
    lambda: 1.5,
    lambda: -0.0,
    lambda: 2**53 + 1,
    lambda: 2**64,
    lambda: -(2**200),
    lambda: 10**5000,
    lambda: math.nan,
    lambda: math.inf,
    lambda: [math.nan, None],
    lambda: Decimal("1.00"),
    lambda: Decimal(1),
    lambda: Decimal("NaN"),
    lambda: Decimal("sNaN"),
    lambda: Decimal("-Infinity"),
    lambda: Decimal("1E+999"),
    lambda: Level.LOW,
    lambda: Status.OPEN,
    lambda: Colour.RED,
    lambda: "red",
    lambda: "1",
    lambda: "2026-03-28T12:00:00Z",
    lambda: "00000000-0000-0000-0000-000000000000",
    lambda: Text("plain"),
    lambda: Marked("text", SECRET),
    lambda: "caf\udce9",
    lambda: "\x00",
    lambda: b"x",
    lambda: b"\xff",
    lambda: bytearray(b"x"),
    lambda: memoryview(b"x"),
    lambda: memoryview(b"abcd").cast("I"),
    lambda: {"deep": [b"x"]},
    lambda: datetime(2026, 3, 28, 12, tzinfo=BERLIN),
    lambda: datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
    lambda: datetime(1890, 1, 1, tzinfo=BERLIN),
    lambda: local(2026, 10, 25, 2, fold=1),
    lambda: datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=3601))),
    lambda: datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")),
    lambda: datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))),
    lambda: datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
    lambda: Moment(2026, 1, 1, tzinfo=UTC),
    lambda: time(12, tzinfo=BERLIN),
    lambda: time(12, fold=1),
    lambda: time(12, tzinfo=UTC),
    lambda: date(2026, 1, 1),
    lambda: timedelta.max,
    lambda: timedelta(microseconds=-1),
    lambda: collections.OrderedDict(b=1, a=2),
    lambda: collections.defaultdict(int, a=1),
    lambda: collections.Counter("aab"),
    lambda: collections.deque([1], maxlen=3),
    lambda: pydantic.SecretStr(SECRET),
    lambda: [Dog()],
    lambda: {"pet": StructDog()},
    lambda: (DataDog(),),
    lambda: range(3),
    lambda: 1j,
    object,
    lambda: None,
]

HINTS: list[Any] = [
    None,
    Any,
    dict,
    list,
    tuple,
    set,
    str,
    int,
    float,
    bool,
    bytes,
    bytearray,
    memoryview,
    Decimal,
    UUID,
    datetime,
    date,
    time,
    timedelta,
    Level,
    Status,
    Colour,
    Animal,
    StructAnimal,
    DataAnimal,
    Pair,
    Sparse,
    int | str,
    int | float,
    str | None,
    dict[str, Any],
    dict[int, str],
    dict[str, int],
    dict[datetime, int],
    list[Any],
    list[int],
    list[Animal],
    dict[str, StructAnimal],
    tuple[DataAnimal, ...],
    tuple[int, int],
    set[int],
    frozenset[str],
    Animal | None,
    Animal | Dog,
    Dog | Animal,
    StructAnimal | None,
    Annotated[int, msgspec.Meta(gt=1)],
    Annotated[int, pydantic.Field(gt=1)],
    pydantic.SerializeAsAny[Animal],
    Annotated[datetime | str, pydantic.Field()],
    Annotated[bytes | int | Decimal, pydantic.Field()],
    Literal[1, "1"],
]


def shown(item: object) -> str:
    """A name for a test that is the same in every process: without addresses, and of sets only the size."""
    if isinstance(item, set | frozenset):
        return f"a {type(item).__name__} of {len(item)}"
    return re.sub(r" at 0x[0-9a-f]+", "", ascii(item))[:40]


@pytest.mark.parametrize("hint", HINTS, ids=str)
def test_a_strangers_value_comes_back_equal_or_is_refused(hint: Any) -> None:
    taken = sum(assert_nothing_is_lost(hint, make()) for make in STRANGERS)
    # Both sides of the rule are met: no hint takes everything, and each takes what is its own.
    assert 0 < taken < len(STRANGERS)


@quick
@given(st.data(), st.sampled_from(STRANGERS))
def test_a_strangers_value_in_a_field_comes_back_equal_or_is_refused(
    data: st.DataObject, make: Callable[[], Any]
) -> None:
    """What the type checker would have found: no constructor looks at the fields of a Struct or dataclass."""
    family = data.draw(st.sampled_from(("struct", "dataclass", "slotted", "typed_dict", "named_tuple")))
    hint, _ = data.draw(typed(depth=1).filter(_is_supported))
    stranger = make()
    cls, values = _made(family, [(hint, st.builds(lambda: stranger)), (Any, st.just(1))])
    if _is_supported((cls, values)):
        for outer, value in ((cls, data.draw(values)), (of(list, cls), [data.draw(values)])):
            assert_nothing_is_lost(outer, value)


@quick
@given(st.data())
def test_a_subclass_is_never_cut_down_to_its_base(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(("struct", "dataclass", "slotted", "model")))
    base, _ = _made(family, [(int, st.just(1))])
    namespace: dict[str, Any] = {"__annotations__": {"breed": str}, "__module__": __name__}
    cls: Any = type(base)("Sub", (base,), namespace)
    if family in ("dataclass", "slotted"):
        cls = dataclasses.dataclass(cls)
    value = cls(f0=1, breed=SECRET)
    for hint, whole in (
        (base, value),
        (base | None, value),
        (of(list, base), [value]),
        (of(dict, str, base), {"a": value}),
        (of(tuple, base, int), (value, 1)),
        (_made("typed_dict", [(base, st.none())])[0], {"f0": value}),
    ):
        assert not assert_nothing_is_lost(hint, whole)
    assert assert_nothing_is_lost(cls, value)


# Models, and what their authors do ----------------------------------------------------------------


class Excluding(pydantic.BaseModel):
    shown: int = 1
    hidden: int = pydantic.Field(default=0, exclude=True)


class Private(pydantic.BaseModel):
    shown: int = 1
    _seen: int = pydantic.PrivateAttr(default=0)


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    shown: int = 1


class Aliased(pydantic.BaseModel):
    shown: int = pydantic.Field(alias="Shown")
    other: int = pydantic.Field(default=1, validation_alias="in", serialization_alias="out")


class Growing(pydantic.BaseModel):
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def grow(cls, n: int) -> int:
        return n + 1


class Failing(pydantic.BaseModel):
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def check(cls, n: int) -> int:
        if n == 1:
            raise KeyError(SECRET)
        return n


class Computed(pydantic.BaseModel):
    n: int

    @pydantic.computed_field  # type: ignore[prop-decorator]  # pydantic's documented form
    @property
    def twice(self) -> int:
        return 2 * self.n

    @functools.cached_property
    def thrice(self) -> int:
        return 3 * self.n


class Rounded(pydantic.BaseModel):
    n: float

    @pydantic.field_serializer("n")
    def rounded(self, n: float) -> float:
        return round(n, 2)


class Secretive(pydantic.BaseModel):
    password: pydantic.SecretStr


class Untyped(pydantic.BaseModel):
    value: Any


class Binary(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    raw: bytes


class Box(pydantic.BaseModel, Generic[T]):
    item: T


@dataclasses.dataclass
class Derived:
    n: int
    twice: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.twice = 2 * self.n

    @functools.cached_property
    def thrice(self) -> int:
        return 3 * self.n


@dataclasses.dataclass(eq=False)
class Identity:
    n: int


@dataclasses.dataclass
class Loud:
    n: int

    def __post_init__(self) -> None:
        if self.n == 1:
            raise LookupError(SECRET)


class Sparing(msgspec.Struct, omit_defaults=True, rename="camel", array_like=False, frozen=True):
    first_name: str = "x"
    tags: list[str] = []


class Row(msgspec.Struct, array_like=True, tag="row", eq=False):
    first: int
    second: str | msgspec.UnsetType = msgspec.UNSET


class GenericStruct(msgspec.Struct, Generic[T]):
    item: T


def changed(value: T, **attributes: Any) -> T:
    for name, item in attributes.items():
        object.__setattr__(value, name, item)
    return value


def cached(value: T) -> T:
    assert getattr(value, "thrice", None)
    return value


MEMBERS: list[tuple[Any, Any, bool]] = [
    (Excluding, Excluding(), True),
    (Excluding, Excluding(hidden=5), False),
    (Private, Private(), True),
    (Private, changed(Private(), _seen=5), False),
    (Open, Open(shown=2, more=[1, "x"]), True),  # type: ignore[call-arg]  # extra="allow"
    (Open, Open(more=(1, 2)), False),  # type: ignore[call-arg]  # extra="allow"
    (Aliased, Aliased(Shown=1), True),
    (Growing, Growing(n=1), False),
    (Failing, Failing(n=2), True),
    (Failing, Failing.model_construct(n=1), False),
    (Computed, Computed(n=1), True),
    (Computed, cached(Computed(n=1)), True),
    (Rounded, Rounded(n=1.25), True),
    (Rounded, Rounded(n=1.255555), False),
    (Secretive, Secretive(password=pydantic.SecretStr(SECRET)), False),
    (Untyped, Untyped(value={"a": [1, None]}), True),
    (Untyped, Untyped(value=(1, 2)), False),
    (Untyped, Untyped(value=Dog()), False),
    (Untyped, Untyped(value=datetime(2026, 1, 1, tzinfo=UTC)), False),
    (Binary, Binary(raw=b"\xff"), True),
    (Box[Dog], Box[Dog](item=Dog()), True),
    (Box[Animal], Box[Animal](item=Dog()), False),
    (Box[int], Box[Any](item=1), False),
    (Derived, Derived(2), True),
    (Derived, cached(Derived(2)), True),
    (Derived, changed(Derived(2), twice=5), False),
    (Derived, changed(Derived(2), note="later"), False),
    (Identity, Identity(1), True),
    (list[Identity], [Identity(1)], True),
    (DataAnimal, AnyAnimal(), False),
    (Loud, Loud(2), True),
    (Loud, changed(Loud(2), n=1), False),
    (Sparing, Sparing(), True),
    (Sparing, Sparing(first_name="y", tags=["a"]), True),
    # In an array, unlike in an object, UNSET can only be written as null.
    (Row, Row(1), False),
    (Row, Row(1, "x"), True),
    (GenericStruct[Animal], GenericStruct(Dog()), False),
    (GenericStruct[Dog], GenericStruct(Dog()), True),
    (GenericStruct, GenericStruct(Dog()), False),
    (Sparse, {"name": "n"}, True),
    (Sparse, {"name": "n", "breed": "b"}, False),
    (Sparse, {"age": 3}, False),
    (StructAnimal, {"name": "n"}, False),
    (list[bytes], [b"x", b"\xff"], True),
    (datetime, datetime(2026, 3, 28, 12, tzinfo=UTC), True),
    (datetime, datetime(2026, 3, 28, 12, tzinfo=timezone(timedelta(hours=2, minutes=30))), True),
    (datetime, datetime(2026, 3, 28, 12, tzinfo=ZoneInfo("UTC")), True),
    (datetime, local(2026, 3, 28, 12), True),
    (datetime, local(2026, 3, 28, 12, fold=1), False),
    (datetime, datetime(2026, 3, 28, 12, tzinfo=BERLIN), False),
    (dict[str, float], {"a": 1}, True),
    (dict[str, float], {"a": 2**53 + 1}, False),
    (int, True, False),
    (int, Level.LOW, True),
    (str, Status.OPEN, True),
    (str, Marked("x", SECRET), False),
    (bytes, bytearray(b"x"), True),
    (bytes, memoryview(b"abcd").cast("I"), False),
    (None, {"a": {"b": [1, 2.5, None, True, "x"]}}, True),
    (None, collections.Counter("ab"), True),
    (None, (1, 2), False),
    (None, {1: 2}, False),
    (dict[int, int], {1: 2}, True),
    (tuple[int, int], (1, 2), True),
]


@pytest.mark.parametrize("at", range(len(MEMBERS)))
def test_members_of_the_kind(at: int) -> None:
    hint, value, taken = MEMBERS[at]
    assert assert_nothing_is_lost(hint, value) is taken, MEMBERS[at]


class Link(msgspec.Struct):
    n: int
    next: Link | None = None


class ModelLink(pydantic.BaseModel):
    next: ModelLink | None = None


def nested(make: Callable[[Any], Any], levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = make(value)
    return value


def from_below(frames: int, call: Callable[[], T]) -> T:
    """What `call` gives with that many frames more on the stack."""
    return call() if frames == 0 else from_below(frames - 1, call)


@pytest.mark.parametrize(
    ("hint", "make"),
    [
        (None, lambda inner: [inner]),
        (None, lambda inner: {"]": inner, '"[{': 1}),
        (list[Any], lambda inner: [inner]),
        (Link, lambda inner: Link(1, inner)),
        (ModelLink, lambda inner: ModelLink.model_construct(next=inner)),
    ],
    ids=["list", "dict", "typed", "struct", "model"],
)
def test_what_nests_so_deep_that_a_handler_could_not_read_it_is_refused(hint: Any, make: Callable[[Any], Any]) -> None:
    """How deep a reader gets depends on its own stack, so the limit leaves it room."""
    serde = serde_for(hint)
    deepest = 0
    for levels in (1, 10, 100, 190, 300, 390, 410, 500, 900, 950, 990, 1_100, 20_000):
        value = nested(make, levels)
        data = written(serde, value)
        if data is None:
            continue
        deepest = levels
        back = from_below(400, functools.partial(serde.deserialize, data))
        assert serde.serialize(back) == data
    assert deepest == (190 if hint is ModelLink else 390)  # Pydantic itself goes no deeper than some 200 levels.


def test_what_contains_itself_is_refused() -> None:
    loop: Any = {}
    loop["again"] = [loop]
    chain = Link(1)
    chain.next = chain
    for value in (loop, chain, [chain]):
        for serde in (
            serde_for(None),
            serde_for(dict[str, Any]),
            serde_for(Link),
            OwnTypesSerde(),
            output_serde_for(None),
        ):
            assert written(serde, value) is None


def test_a_hint_that_lists_the_same_types_in_another_order_is_another_hint() -> None:
    class One(pydantic.BaseModel):
        n: int

    class Two(pydantic.BaseModel):
        n: int

    for hint in (One | Two, Two | One):
        for value in (One(n=1), Two(n=1)):
            assert_nothing_is_lost(hint, value)
    assert assert_nothing_is_lost(One | Two, One(n=1))
    assert assert_nothing_is_lost(Two | One, Two(n=1))


def test_a_check_of_the_type_runs_once_at_the_write_and_once_at_each_read() -> None:
    checks: list[int] = []

    @dataclasses.dataclass
    class Counted:
        n: int

        def __post_init__(self) -> None:
            checks.append(self.n)

    serde = serde_for(Counted)
    value = Counted(1)
    data = serde.serialize(value)
    assert len(checks) == 2
    serde.deserialize(data)
    assert len(checks) == 3


# What the message says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "value", "says"),
    [
        (list[Animal], [Animal(), Dog()], r"at \$\[1\], Dog would come back as Animal; the declared type must be"),
        (None, Dog(), r"at \$, Dog would come back as dict; give the type, such as Dog: annotate the step"),
        (None, {"a": (1, "x")}, r"at \$\[\.\.\.\], tuple would come back as list; .* dict\[str, tuple\[int, str\]\]"),
        (None, {1: {2, 3}}, r"such as dict\[int, set\[int\]\]"),
        (None, [datetime(2026, 1, 1, tzinfo=UTC)], r"datetime would come back as str; .* such as list\[datetime\]"),
        (datetime, datetime(2026, 1, 1, tzinfo=BERLIN), r"time zone \(ZoneInfo\) would be lost; convert it to UTC or"),
        (datetime, local(2026, fold=1), r"fold would be lost"),
        (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=1))), r"offset has seconds"),
        (Sparse, {"name": "n", SECRET: 1}, r"dict would come back with other keys than it has"),
        (Excluding, Excluding(hidden=5), r"at \$\.hidden, int would come back changed"),
        (int, "x", r"it could not be read back: Expected `int`, got `str`"),
        (float, math.nan, r"no NaN"),
        (Decimal, Decimal("NaN"), r"a NaN equals nothing"),
        (Failing, Failing.model_construct(n=1), r"refused by a check of the type \(KeyError\)"),
        (Loud, changed(Loud(2), n=1), r"refused by a check of the type \(LookupError\)"),
    ],
    ids=shown,
)
def test_the_error_says_where_and_what_to_do(hint: Any, value: Any, says: str) -> None:
    with pytest.raises(UnserialisableError, match=says) as caught:
        serde_for(hint).serialize(value)
    assert SECRET not in str(caught.value)


# Where values enter -------------------------------------------------------------------------------


OWN: list[tuple[Any, Any, bool]] = [
    (Dog(), Dog, True),
    (StructDog(), StructDog, True),
    (DataDog(), DataDog, True),
    (Pair(), Pair, True),
    ([DataDog(), DataDog(name="y")], list[DataDog], True),
    ({"pets": [Dog()]}, dict[str, list[Dog]], True),
    ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, dict[str, datetime], True),
    (datetime(2026, 1, 1, tzinfo=BERLIN), datetime, False),
    ([datetime(2026, 1, 1, tzinfo=BERLIN)], list[datetime], False),
    (Status.OPEN, Status, True),
    (Level.HIGH, Level, True),
    (Colour.RED, Colour, True),
    (Decimal("1.00"), Decimal, True),
    (UUID(int=1), UUID, True),
    (b"\xff", bytes, True),
    ([b"x"], list[bytes], False),
    ((1, 2), None, False),
    ({1, 2}, None, False),
    ({1: "a"}, None, False),
    ({"a": [(1, 2)]}, None, False),
    ({"a": 1, "b": [None, True, 1.5]}, None, True),
    ([], None, True),
    (None, None, True),
    (math.nan, None, False),
    (Excluding(hidden=5), Excluding, False),
    ([Excluding(hidden=5)], list[Excluding], False),
    (Untyped(value=(1, 2)), Untyped, False),
    (Secretive(password=pydantic.SecretStr(SECRET)), Secretive, False),
    (object(), None, False),
    ([object()], None, False),
    (1j, None, False),
]


@pytest.mark.parametrize(("value", "hint", "taken"), OWN, ids=shown)
def test_without_a_hint_state_comes_back_by_the_values_own_class(value: Any, hint: Any, taken: bool) -> None:
    data = written(OwnTypesSerde(), value)
    assert (data is not None) is taken
    if data is not None:
        assert facts(serde_for(hint).deserialize(data)) == facts(value)


class Sent(msgspec.Struct):
    pet: Animal


AWAKEABLE = str(AwakeableId(InvocationId(Lane("kennel", "k"), "n"), "0a", "0" * 32))


def _refusals(ctx: ObjectContext, take: Any, any_input: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every way in that takes a value, with one that would lose something."""
    yield "state 'k'", lambda: ctx.set("k", (1, 2))
    yield "state 'k'", lambda: ctx.set("k", {1: 2})
    yield "state 'k'", lambda: ctx.set("k", [Dog()], list[Animal])
    yield "state 'k'", lambda: ctx.set("k", datetime(2026, 1, 1, tzinfo=BERLIN))
    yield "the value of an awakeable", lambda: ctx.resolve_awakeable(AWAKEABLE, {1, 2})
    yield "the value of an awakeable", lambda: ctx.resolve_awakeable(AWAKEABLE, Dog(), Animal)
    yield "the message to kennel/take", lambda: ctx.object_send(take, "k", Dog())
    yield "the message to kennel/take", lambda: ctx.object_send(take, "k", {"name": "x"})
    yield "the message to kennel/take", lambda: ctx.object_send(take, "k")
    yield "the message to plain/any_input", lambda: ctx.service_send(any_input, Dog())
    yield "the message to plain/any_input", lambda: ctx.service_send(any_input, (1, 2))
    yield "the record for 't'", lambda: ctx.publish("t", {"a": math.nan})
    yield "the record for 't'", lambda: ctx.publish("t", {1: "a", "1": "b"})
    yield "the record for 't'", lambda: ctx.publish("t", object())


def test_every_way_in_refuses_what_would_be_lost_and_names_itself() -> None:
    kennel, plain = VirtualObject("kennel"), Service("plain")
    refused: list[str] = []

    @kennel.handler()
    async def take(ctx: ObjectContext, pet: Animal) -> None: ...

    @plain.handler()
    async def any_input(ctx: Context, value: Any) -> None: ...

    @kennel.handler()
    async def act(ctx: ObjectContext) -> int:
        for what, write in _refusals(ctx, take, any_input):
            with pytest.raises(UnserialisableError, match=what):
                write()
            refused.append(what)
        ctx.set("pets", [Dog(), Dog(breed="other")], list[Dog])
        ctx.set("seen", {(1, 2)}, set[tuple[int, int]])
        ctx.set("user", StructDog())
        ctx.publish("t", {"a": (1, 2), 1: Dog()})
        return len(refused)

    @kennel.handler()
    async def check(ctx: ObjectContext) -> bool:
        return (
            await ctx.get("pets", list[Dog]) == [Dog(), Dog(breed="other")]
            and await ctx.get("seen", set[tuple[int, int]]) == {(1, 2)}
            and await ctx.get("user", StructDog) == StructDog()
        )

    async def main() -> None:
        local = InProcess(kennel, plain)
        assert await local.call(act, "ann") == len(refused) > 10
        assert await local.call(check, "ann") is True

    asyncio.run(main())


STEPS: list[tuple[Any, Callable[[], Any], str]] = [
    (Animal, Dog, "Dog would come back as Animal"),
    (StructAnimal, StructDog, "StructDog would come back as StructAnimal"),
    (DataAnimal, DataDog, "DataDog would come back as DataAnimal"),
    (Sent, lambda: Sent(Dog()), "the result of run 'step'"),
    (None, Dog, "such as Dog"),
    (None, lambda: (1, 2), r"such as tuple\[int, int\]"),
    (datetime, lambda: datetime(2026, 3, 28, 12, tzinfo=BERLIN), "time zone"),
]


@pytest.mark.parametrize(("hint", "action", "says"), STEPS, ids=shown)
def test_a_step_whose_result_would_lose_something_ends_the_invocation_with_the_reason(
    hint: Any, action: Callable[[], Any], says: str
) -> None:
    stage = Service("stage")

    @stage.handler()
    async def act(ctx: Context) -> None:
        await ctx.run_with(RunOptions(type_hint=hint), "step", action)

    with pytest.raises(Exception, match=says):
        asyncio.run(InProcess(stage).call(act, ""))


@pytest.mark.parametrize("annotated", [True, False])
def test_a_handlers_result_is_held_to_the_type_it_declares(annotated: bool) -> None:
    stage = Service("stage")

    async def act(ctx: Context) -> Animal:
        return Dog()

    if not annotated:
        act.__annotations__["return"] = Any
    handler = stage.handler()(act)
    if annotated:
        with pytest.raises(Exception, match="Dog would come back as Animal"):
            asyncio.run(InProcess(stage).call(handler, ""))
    else:
        assert asyncio.run(InProcess(stage).call(handler, "")) == {"name": "x", "breed": "terrier"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | floats | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    )
)
@example(value=2**70)
@example(value=-0.0)
def test_plain_json_is_never_refused(value: Any) -> None:
    for serde in (JsonSerde(), OwnTypesSerde(), output_serde_for(None)):
        assert facts(serde.deserialize(serde.serialize(value))) == facts(value)
    assert uuid.UUID(int=0) != value
