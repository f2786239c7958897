"""Mistakes of a declaration, and of a call, are refused where they are made, with handler, file and line.

Owns the matrix of kinds and contexts, and the place that each refusal names. Does not own names and policies
(`test_service`).
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Never,
    NewType,
    NoReturn,
    Protocol,
    TypeAlias,
    TypeVar,
)

import pytest
from pydantic import BaseModel, BeforeValidator

import tenuto
from tenuto import (
    Context,
    InvocationRetryPolicy,
    ObjectContext,
    ObjectSharedContext,
    Service,
    TerminalError,
    VirtualObject,
    aws,
)
from tenuto.testing import Environment, KeepsFailingError

if TYPE_CHECKING:
    from tenuto import Context as CheckedContext
    from tests.kit.shop import Order as CheckedOrder

HERE = Path(__file__).name
Kind: TypeAlias = Literal["service", "object", "shared"]
GIVEN: dict[Kind, type] = {"service": Context, "object": ObjectContext, "shared": ObjectSharedContext}


class Reads(Protocol):
    """What a handler may ask of its context."""

    @property
    def key(self) -> str: ...


@dataclass
class Order:
    """An input."""

    item: str


@dataclass
class Wide:
    """Another one."""

    width: int


def decorator(kind: Kind) -> Callable[[Any], Any]:
    match kind:
        case "service":
            return Service("orders").handler("place")
        case "object":
            return VirtualObject("orders").handler("place")
        case "shared":
            return VirtualObject("orders").handler("place", kind="shared")


def handler_of(annotation: Any) -> Any:
    async def place(ctx: Any, order: Order) -> str:
        return order.item

    place.__annotations__ = {"ctx": annotation, "order": Order, "return": str}
    return place


WRITTEN: tuple[Callable[[Any], Any], ...] = (
    lambda one: one,
    lambda one: one.__name__,
    lambda one: f"tenuto.{one.__name__}",
    lambda one: one | None,
    lambda one: Annotated[one, "mine"],
    lambda one: TypeVar("C", bound=one),
    lambda one: NewType("Mine", one),
)
FORMS = ["class", "text", "dotted", "union", "annotated", "variable", "new type"]


@pytest.mark.parametrize("written", range(len(WRITTEN)), ids=FORMS)
@pytest.mark.parametrize("asked", GIVEN)
@pytest.mark.parametrize("kind", GIVEN)
def test_each_kind_of_handler_expects_its_own_context(kind: Kind, asked: Kind, written: int) -> None:
    function = handler_of(WRITTEN[written](GIVEN[asked]))
    if kind == asked:
        assert decorator(kind)(function).name == "place"
        return
    line = function.__code__.co_firstlineno
    words = rf"orders/place: .* is given an? {GIVEN[kind].__name__}, not an? \w+: .*{HERE}:{line}"
    with pytest.raises(TypeError, match=words):
        decorator(kind)(function)


@pytest.mark.parametrize("annotation", [Any, object, Reads, "Any"], ids=range(4))
@pytest.mark.parametrize("kind", GIVEN)
def test_what_may_be_a_context_is_taken(kind: Kind, annotation: Any) -> None:
    assert decorator(kind)(handler_of(annotation)).name == "place"


@pytest.mark.parametrize("annotation", ["NotAnywhere", "tenuto.nowhere.Context", "none (", "1 / 0"], ids=range(4))
@pytest.mark.parametrize("of", ["ctx", "order", "return"])
def test_a_hint_that_cannot_be_resolved_is_refused(of: str, annotation: str) -> None:
    function = handler_of(Context)
    function.__annotations__[of] = annotation
    line = function.__code__.co_firstlineno
    named = "the result" if of == "return" else f"'{of}'"
    words = (
        rf"^orders/place: the annotation '{re.escape(annotation)}' of {named} cannot be resolved: .*{HERE}:{line}\)$"
    )
    with pytest.raises(TypeError, match=words):
        Service("orders").handler()(function)


def test_a_name_that_is_imported_for_type_checkers_is_refused_with_the_way_out() -> None:
    async def place(ctx: CheckedContext, order: Order) -> None: ...
    async def pay(ctx: Context, order: CheckedOrder) -> None: ...
    async def keep(ctx: Context) -> CheckedOrder:
        raise NotImplementedError

    for function in (place, pay, keep):
        with pytest.raises(TypeError, match=r"'Checked\w+' .* and not under `if TYPE_CHECKING:` \(declared at"):
            Service("orders").handler()(function)


@pytest.mark.parametrize("kind", GIVEN)
def test_a_context_input_or_result_without_a_hint_is_refused_with_the_way_out(kind: Kind) -> None:
    given = GIVEN[kind].__name__
    ways = {
        "ctx": rf"its context 'ctx' has no type hint: write ctx: {given}, as in async def place\(ctx: {given}, ",
        "order": r"its input 'order' has no type hint: write order: T",
        "return": r"its result has no type hint: write -> T",
    }
    for of, way in ways.items():
        function = handler_of(GIVEN[kind])
        del function.__annotations__[of]
        line = function.__code__.co_firstlineno
        with pytest.raises(TypeError, match=rf"^orders/place: {way}.*{HERE}:{line}\)$"):
            decorator(kind)(function)


class Alias:
    """As the `type` statement of Python 3.12 makes them: evaluated when it is looked at."""

    @property
    def __value__(self) -> type:
        raise NameError("name 'Nowhere' is not defined", name="Nowhere")


@pytest.mark.parametrize("of", ["ctx", "order", "return"])
def test_an_alias_of_nothing_is_refused(of: str) -> None:
    function = handler_of(Context)
    function.__annotations__[of] = Alias()
    with pytest.raises(TypeError, match=rf"^orders/place: a type hint cannot be resolved: .*Nowhere.*{HERE}:\d+\)$"):
        Service("orders").handler()(function)


class Mixed(Enum):
    """Neither text nor numbers."""

    A = object()


NO_TYPES: dict[str, Any] = {
    "a value": 5,
    "a module": re,
    "ClassVar": ClassVar[int],
    "an awaitable": Awaitable[int],
    "a callable": Callable[[], int],
    "a context": ObjectContext,
    "a dict by objects": dict[Order, int],
    "a dict by tuples": list[dict[tuple[int, int], str]],
    "a set of what is not hashable": set[Order],
    "two dataclasses": Order | Wide,
    "an enum of objects": Mixed,
    "type variable with constraints": TypeVar("S", str, int),
}


@pytest.mark.parametrize("of", ["order", "return"])
@pytest.mark.parametrize("hint", NO_TYPES)
def test_what_cannot_be_read_or_written_is_refused(hint: str, of: str) -> None:
    function = handler_of(Context)
    function.__annotations__[of] = NO_TYPES[hint]
    line = function.__code__.co_firstlineno
    with pytest.raises(TypeError, match=rf"^orders/place: the type hint .*{HERE}:{line}\)$"):
        Service("orders").handler()(function)


class Odd:
    """A class that has no form of its own."""


class HoldsOdd(BaseModel, arbitrary_types_allowed=True):
    """Pydantic takes it from Python alone."""

    odd: list[Odd]


class HoldsCallable(BaseModel):
    """As well."""

    call: Callable[[], int]


class MakesOdd(BaseModel, arbitrary_types_allowed=True):
    """What JSON can hold or leave out."""

    odd: Annotated[Odd, BeforeValidator(lambda _text: Odd())]
    more: Odd = Odd()
    none: Odd | None


@pytest.mark.parametrize("hint", [HoldsOdd, HoldsCallable, list[HoldsOdd]], ids=range(3))
def test_a_model_that_no_json_can_become_is_refused(hint: Any) -> None:
    function = handler_of(Context)
    function.__annotations__["order"] = hint
    with pytest.raises(TypeError, match=rf"^orders/place: .* (Odd|a callable) has no JSON form; .*{HERE}:\d+\)$"):
        Service("orders").handler()(function)


def test_a_model_that_makes_its_values_of_json_is_taken() -> None:
    function = handler_of(Context)
    function.__annotations__["order"] = MakesOdd
    assert Service("orders").handler()(function).name == "place"


@pytest.mark.parametrize("hint", [NoReturn, Never])
def test_a_handler_may_always_raise(hint: Any) -> None:
    function = handler_of(Context)
    function.__annotations__["return"] = hint
    assert Service("orders").handler()(function).name == "place"


@pytest.mark.parametrize("annotation", [5, Literal["x"], re, Never], ids=range(4))
def test_a_context_that_is_no_type_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError, match=rf"orders/place: .* is given a Context, not .*{HERE}:\d+\)$"):
        Service("orders").handler()(handler_of(annotation))


def test_what_a_type_variable_stands_for_is_looked_up() -> None:
    late, one_of = TypeVar("late", bound="ObjectContext"), TypeVar("one_of", Order, Context)
    assert Service("orders").handler()(handler_of(one_of)).name == "place"
    with pytest.raises(TypeError, match="not an ObjectContext"):
        Service("orders").handler()(handler_of(late))


@pytest.mark.parametrize("annotation", [Order, str, int, dict[str, int], "Order", list], ids=range(6))
def test_a_handler_without_a_context_is_refused(annotation: Any) -> None:
    with pytest.raises(
        TypeError, match=r"orders/place: a handler of a service is given a Context, not an? (Order|\w+)"
    ):
        decorator("service")(handler_of(annotation))


def test_a_context_of_ones_own_is_not_what_is_given() -> None:
    class Mine(ObjectContext):
        __slots__ = ()

    with pytest.raises(TypeError, match=r"is given an ObjectContext, not a .*Mine"):
        decorator("object")(handler_of(Mine))


def test_a_hint_that_no_serde_takes_names_the_place() -> None:
    class Odd:
        pass

    function = handler_of(Context)
    function.__annotations__["order"] = Odd
    with pytest.raises(TypeError, match=rf"orders/place: .*Odd.*{HERE}:\d+\)"):
        Service("orders").handler("place")(function)


def test_two_handlers_of_one_name_are_both_named() -> None:
    orders = Service("orders")
    first, second = handler_of(Context), handler_of(Context)
    orders.handler()(first)
    line = first.__code__.co_firstlineno
    words = rf"orders/place is declared twice, first at .*{HERE}:{line} \(declared at .*{HERE}:{line}\)"
    with pytest.raises(ValueError, match=words):
        orders.handler()(second)


@pytest.mark.parametrize(
    "mistake",
    [lambda _ctx, _order: None, 5, functools.partial(handler_of)],
    ids=["a lambda", "no function", "a partial of a function"],
)
def test_what_is_no_async_function_is_refused(mistake: Any) -> None:
    with pytest.raises(TypeError, match="orders/place"):
        Service("orders").handler("place")(mistake)


@pytest.mark.parametrize("bound", [{}, {"rate": 1.5}], ids=["not bound", "bound"])
def test_what_a_partial_still_takes_is_named(bound: dict[str, Any]) -> None:
    async def place(_ctx: Context, _order: int, *, rate: float) -> None:
        """What is bound by keyword is a parameter still."""

    words = rf"orders/place: .*at most one input; leave out 'rate': async def.*{HERE}:\d+\)"
    with pytest.raises(TypeError, match=words):
        Service("orders").handler("place")(functools.partial(place, **bound))


def test_a_handler_is_not_declared_as_another_one_too() -> None:
    place = Service("orders").handler()(handler_of(Context))
    with pytest.raises(TypeError, match=rf"orders/place is a handler already, and .* of mail too.*{HERE}:\d+\)"):
        Service("mail").handler()(place)


def test_a_handler_has_one_name() -> None:
    orders = Service("orders")
    place = orders.handler("place")(handler_of(Context))
    with pytest.raises(TypeError, match=r"orders/place is a handler already, and .* of orders too"):
        orders.handler("put")(place)


@pytest.mark.parametrize(("hint", "default"), [(Order, None), (Order, Order("tea")), (Order | None, Order("tea"))])
def test_a_default_that_is_never_used_is_refused(hint: Any, default: Any) -> None:
    place = handler_of(Context)
    place.__annotations__["order"] = hint
    place.__defaults__ = (default,)
    with pytest.raises(TypeError, match=rf"orders/place: the default of its input 'order' is .*{HERE}:\d+\)"):
        Service("orders").handler()(place)


def test_a_default_is_none_where_the_input_may_be() -> None:
    orders = Service("orders")

    @orders.handler()
    async def place(_ctx: Context, order: Order | None = None) -> bool:
        return order is None

    async def main() -> None:
        async with Environment(orders) as env:
            assert await env.call(place)

    asyncio.run(main())


EMPTY = VirtualObject("empty")
KEPT = Service("kept")
KEPT.handler("place")(handler_of(Context))
WRONG: Any = "readonly"
WRONG_LIST: Any = [KEPT]
A_CLASS: Any = Service
NONE: Any = None
DECLARED: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (aws.handler, r"aws\.handler\(\) serves nothing"),
    "no handlers": (lambda: aws.handler(KEPT, EMPTY), r"aws\.handler: empty has no handlers"),
    "twice": (lambda: aws.handler(KEPT, KEPT), "kept is given twice"),
    "one name": (lambda: aws.handler(KEPT, VirtualObject("kept")), "two services are called 'kept'"),
    "a list": (lambda: aws.handler(WRONG_LIST), r"not a list: give each one by itself, or \*services"),
    "a handler": (lambda: aws.handler(KEPT.handlers["place"]), "not the handler kept/place: give its service, kept"),
    "a class": (lambda: aws.handler(A_CLASS), "not the class Service: give an instance"),
    "none": (lambda: aws.handler(NONE), "not NoneType"),
    "a name": (lambda: Service("a/b"), "not a valid service name"),
    "a handler's name": (lambda: KEPT.handler("a/b"), "not a valid handler name"),
    "a kind": (lambda: EMPTY.handler(kind=WRONG), "is 'exclusive' or 'shared', not 'readonly'"),
    "a policy": (lambda: Service("a", retry_policy=WRONG), "retry_policy is an InvocationRetryPolicy"),
    "attempts": (lambda: InvocationRetryPolicy(max_attempts=0), "max_attempts is at least 1"),
    "an interval": (lambda: InvocationRetryPolicy(initial_interval=-1), "0 < initial_interval"),
    "intervals": (lambda: InvocationRetryPolicy(initial_interval=90), "initial_interval <= max_interval"),
    "a factor": (lambda: InvocationRetryPolicy(factor=float("nan")), "1 <= factor"),
}


@pytest.mark.parametrize("mistake", DECLARED)
def test_a_mistake_without_a_function_names_the_line_that_makes_it(mistake: str) -> None:
    make, words = DECLARED[mistake]
    with pytest.raises((TypeError, ValueError), match=words) as refused:
        make()
    assert re.search(rf"\(declared at \S*{HERE}:\d+\)$", str(refused.value))
    assert str(refused.value).count("declared at") == 1


def test_a_wrapped_function_is_looked_into() -> None:
    plain = handler_of(ObjectContext)

    @functools.wraps(plain)
    async def wrapper(*args: Any) -> Any:
        return await plain(*args)

    with pytest.raises(TypeError, match=rf"is given a Context, not an ObjectContext.*{HERE}:\d+\)"):
        Service("orders").handler()(wrapper)


# --- where a message or a future is handed over ----------------------------------------------------------------------

keeper = VirtualObject("keeper")
sender = Service("sender")


@keeper.handler()
async def keep(ctx: ObjectContext, order: Order) -> None:
    ctx.set("item", order.item)


@keeper.handler(kind="shared")
async def look(ctx: ObjectSharedContext) -> str | None:
    return await ctx.get("item", str)


@sender.handler()
async def nothing(ctx: Context) -> None:
    """Takes no input."""


FIVE: list[Any] = [5]

MISTAKES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an argument of another type": (
        lambda ctx: ctx.object_send(keep, "k", 5),
        "the message to keeper/keep of type int",
    ),
    "no argument": (lambda ctx: ctx.object_send(keep, "k"), "the message to keeper/keep of type NoneType"),
    "an argument for none": (lambda ctx: ctx.service_send(nothing, 5), "sender/nothing takes no input: send None"),
    "a shared handler": (lambda ctx: ctx.object_send(look, "k"), "keeper/look is a shared handler"),
    "an object's handler": (
        lambda ctx: ctx.service_send(keep, Order("tea")),
        "keeper/keep belongs to a virtual object",
    ),
    "a service's handler": (lambda ctx: ctx.object_send(nothing, "k"), "sender/nothing belongs to a service"),
    "a name": (lambda ctx: ctx.service_send("sender/nothing"), "takes a declared handler, not str"),
    "a function": (lambda ctx: ctx.service_send(keep.function), "takes a declared handler, not function"),
    "a key": (lambda ctx: ctx.object_send(keep, 5, Order("tea")), "the key is text, not int"),
    "gather": (lambda ctx: ctx.gather(5), "ctx.gather takes the futures that context methods return, not int"),
    "select": (lambda ctx: ctx.select(a=5), "ctx.select takes the futures that context methods return, not int"),
    "tenuto.gather": (lambda _ctx: tenuto.gather(*FIVE), "gather takes the futures"),
    "a step": (lambda ctx: ctx.run("pay", 5), "takes a callable and its arguments, not int"),
    "an argument that its target does not take": (
        lambda ctx: ctx.object_send(keep, "k", 3),
        "the message to keeper/keep of type int",
    ),
    "a future in a message": (
        lambda ctx: ctx.object_send(keep, "k", ctx.sleep(1)),
        r'the message to keeper/keep is a durable future that was not awaited: write "await ctx\.sleep',
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_a_call_is_refused_with_handler_and_line(mistake: str) -> None:
    act, words = MISTAKES[mistake]
    caller = Service("caller")

    @caller.handler()
    async def make(ctx: Context) -> None:
        found = act(ctx)
        if asyncio.iscoroutine(found):
            await found

    async def main() -> None:
        async with Environment(caller, keeper, sender, attempts_max=2) as env:
            await env.call(make)

    with pytest.raises((KeepsFailingError, TerminalError), match=words) as raised:
        asyncio.run(main())
    if isinstance(raised.value, KeepsFailingError):
        assert HERE in str(raised.value)
        assert "caller/make" in str(raised.value)
    else:
        (note,) = raised.value.__notes__
        assert HERE in note


def _ends(error: BaseException) -> None:
    raise error


async def _work() -> int:
    return 1


REFUSED_RESULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a sleep": (lambda ctx: ctx.sleep(3), r'a durable future that was not awaited: write "return await ctx\.sleep'),
    "a step": (lambda ctx: ctx.run("work", _work), r'a durable future .*write "return await ctx\.run'),
    "a step in a list": (lambda ctx: [ctx.run("work", _work)], "holds a durable future that was not awaited"),
    "a coroutine": (lambda _ctx: _work(), "is a coroutine that was not awaited"),
    "a coroutine in a dict": (lambda _ctx: {"a": [_work()]}, "holds a coroutine that was not awaited"),
    "a group of errors": (lambda _ctx: _ends(ExceptionGroup("both", [ValueError("the inner one")])), "the inner one"),
    "the end of the process": (lambda _ctx: _ends(SystemExit(3)), "SystemExit: 3"),
    "a cancellation of its own": (lambda _ctx: _ends(asyncio.CancelledError()), "CancelledError"),
}


@pytest.mark.parametrize("mistake", REFUSED_RESULTS)
def test_what_ends_an_attempt_after_the_handler_counts_among_its_failures(mistake: str) -> None:
    make, words = REFUSED_RESULTS[mistake]
    caller = Service("caller")

    @caller.handler()
    async def give(ctx: Context) -> Any:
        return make(ctx)

    async def main() -> None:
        async with Environment(caller, attempts_max=3) as env:
            await env.call(give)

    with pytest.raises(KeepsFailingError, match=rf"caller/give has failed [3-6] times in a row.*{words}") as raised:
        asyncio.run(main())
    assert HERE in str(raised.value)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda ctx: ctx.set("n", 1), "NoneType can't be used in 'await' expression"),
        (lambda ctx: ctx.object_send(keep, "k", Order("tea")), "str can't be used in 'await' expression"),
        (lambda ctx: 5, "int can't be used in 'await' expression"),
        (lambda ctx: asyncio.get_running_loop().create_future(), "waits for something that nothing will bring about"),
    ],
    ids=["set", "send", "number", "future"],
)
def test_what_is_no_future_and_is_awaited_is_told_with_handler_and_line(act: Callable[[Any], Any], words: str) -> None:
    box = VirtualObject("box")

    @box.handler()
    async def make(ctx: ObjectContext) -> None:
        await act(ctx)

    line = make.function.__code__.co_firstlineno + 2

    async def main() -> None:
        async with Environment(box, attempts_max=2) as env:
            await env.call(make, "k")

    with pytest.raises(KeepsFailingError, match=rf"box/make has failed .*{words}.*{HERE}:{line}"):
        asyncio.run(main())
