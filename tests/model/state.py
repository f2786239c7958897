"""The world of the model as a value: everything durable, every process, and what faults are left.

Owns the shape of a state. Named tuples and not dataclasses: a search hashes them by the million, and the interpreter
hashes a tuple itself. Fields that only the laws read are called ghosts. Does not own what happens (`moves`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from tests.model.programs import Faults, Program, Scenario
from tests.model.rules import Rules

Slots: TypeAlias = tuple[tuple[str, int], ...]
"""Journal slots by name. A step's value is the attempt that made it, negative for a twin's."""

State: TypeAlias = tuple[str, ...]
Mark: TypeAlias = str | None
Mode: TypeAlias = Literal["spec", "drain", "call", "resume"]
Name: TypeAlias = tuple[int, int, int]
"""A segment item: the writer's ver, number and count."""

Entry: TypeAlias = tuple[Literal["o", "R"], str]
"""An outbox entry: a message of an event, or the result of a call."""


class SleepTimer(NamedTuple):
    """A timer item: the end of a sleep."""

    event: str


class GuardTimer(NamedTuple):
    """A timer item: a guard. `ver` is what the guarded write expects, `holder` who makes it."""

    event: str
    holder: int | None = None
    ver: int | None = None
    note: str = ""


Timer: TypeAlias = SleepTimer | GuardTimer


class Run(NamedTuple):
    """The invocation that has the lane. `awaits` is None while it is active. `first` is a ghost.

    `more`: not all awaited slots are in the list, which then ends with the mark `seen`. `ans` is the mark of the last
    answer, `took` has the answers that are in segments. After a nap, `nap` is the invocation whose caller keeps the
    lane.
    """

    event: str
    attempt: int
    holder: int
    awaits: tuple[str, ...] | None = None
    more: bool = False
    seen: str | None = None
    slots: Slots = ()
    segments: tuple[Name, ...] = ()
    base: State | None = None
    own: int | None = None
    ans: str | None = None
    took: tuple[str, ...] = ()
    nap: int | None = None
    first: State = ()


class Head(NamedTuple):
    """The head item of the lane."""

    ver: int = 0
    tok: tuple[int, ...] | None = None
    state: State = ()
    run: Run | None = None
    watermark: int = 0
    pend: Mark = None
    out: frozenset[Entry] = frozenset()
    fin: frozenset[str] = frozenset()


class Attempt(NamedTuple):
    """A function at work: `at` is the write it makes next. `number` is its process, `holder` what it was invoked as.

    `ver` is None while it speculates. `known` and `fresh` are its view of the journal, `held` the slots it believes to
    be in the head, `put` the segment items it has put for the write at hand, `post` events whose message waits.
    """

    number: int
    holder: int
    at: str
    mode: Mode
    events: tuple[str, ...]
    seen_ver: int
    seen_pend: Mark = None
    place: int = 0
    op: int = 0
    ver: int | None = None
    attempt: int = 0
    state: State = ()
    first: State = ()
    known: Slots = ()
    fresh: Slots = ()
    held: Slots = ()
    post: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    segments: tuple[Name, ...] = ()
    put: tuple[tuple[Name, Slots], ...] = ()
    puts: int = 0
    ans: str | None = None
    clears: bool = False
    lost: bool = False
    twin: bool = False

    @property
    def event(self) -> str:
        """The event it is at."""
        return self.events[self.place]


class Dispatcher(NamedTuple):
    """A control plane at this lane: `at` is its next step, `pos` the next offset, `head` what it read for that step."""

    at: str
    pos: int
    head: Head | None = None
    dirty: bool = False
    holder: int | None = None
    event: str | None = None
    entry: Entry | None = None
    timer: Timer | None = None
    ended: frozenset[Timer] = frozenset()
    inbox: tuple[tuple[tuple[str, str], str], ...] | None = None
    lost: bool = False


class Caller(NamedTuple):
    """A process that makes the call: `head` and `stored` are what it has read, `holder` whom it waits for."""

    at: str = "start"
    head: Head | None = None
    stored: bool = False
    holder: int | None = None
    said: str = ""


class Shipper(NamedTuple):
    """A process that ships the sending lane's outbox."""

    at: str
    todo: tuple[str, ...]
    done: int = 0


class Resolver(NamedTuple):
    """Who answers an awakeable; `room` is whether the head had room when it looked, `ans` the mark it saw."""

    at: str = "start"
    room: bool = True
    ans: str | None = None


class Budget(NamedTuple):
    """Faults that may still strike."""

    crash: int
    kill: int
    lost: int
    rebalance: int
    shippers: int
    twin: int
    zombie: int
    late: int
    total: int


class World(NamedTuple):
    """A state. `inbox` holds positions with "live" or "done"; `committed` is the group's offset; `problem` is a ghost.

    `naps` are the holders for whom each control plane is to begin an attempt after a nap. `accepted` are calls that
    were promised a result, `delivered` messages that left the lane.
    """

    head: Head
    budget: Budget
    inbox: tuple[tuple[tuple[str, str], str], ...] = ()
    timers: frozenset[Timer] = frozenset()
    results: frozenset[str] = frozenset()
    items: tuple[tuple[Name, Slots], ...] = ()
    committed: int = 0
    owner: int = 0
    dispatchers: tuple[Dispatcher | None, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    callers: tuple[Caller | None, ...] = ()
    shippers: tuple[Shipper | None, ...] = ()
    outbox: tuple[str, ...] = ()
    resolvers: tuple[Resolver, ...] = ()
    due: bool = False
    naps: tuple[int | None, int | None] = (None, None)
    delivered: frozenset[str] = frozenset()
    accepted: frozenset[str] = frozenset()
    problem: str | None = None


class Model(NamedTuple):
    """What an exploration is about: a scenario under rules."""

    scenario: Scenario
    rules: Rules

    @property
    def programs(self) -> Mapping[str, Program]:
        """The program of each event."""
        return self.scenario.programs


class Move(NamedTuple):
    """Something that may happen next."""

    label: str
    world: World
    fault: bool = False


def initial(scenario: Scenario) -> World:
    """The beginning."""
    faults: Faults = scenario.faults
    budget = Budget(
        faults.crash,
        faults.kill,
        faults.lost,
        faults.rebalance,
        faults.shippers,
        faults.twin,
        faults.zombie,
        faults.late,
        faults.total,
    )
    return World(
        Head(),
        budget,
        dispatchers=(Dispatcher("idle", 0), None),
        callers=(Caller(),) * (scenario.callers if scenario.call else 0),
        shippers=(None, None) if scenario.messages else (),
        outbox=scenario.messages,
        resolvers=(Resolver(),) * len(scenario.answers),
    )


def spend(world: World, fault: str) -> World | None:
    """The world after a fault is drawn from its budget; None when there is none left."""
    budget = world.budget
    left: int = getattr(budget, fault)
    if not left or not budget.total:
        return None
    after = budget._replace(**{fault: left - 1, "total": budget.total - 1})
    # With nothing left in total, what is left of each kind makes no difference: equal futures are one state.
    return world._replace(budget=after if after.total else Budget(0, 0, 0, 0, 0, 0, 0, 0, 0))


def slot(slots: Slots, name: str) -> int | None:
    """The value of a slot."""
    return next((value for key, value in slots if key == name), None)


def with_slots(slots: Slots, more: Iterable[tuple[str, int]]) -> Slots:
    """Slots with others laid over them."""
    return tuple(sorted({**dict(slots), **dict(more)}.items()))


def readable(world: World, run: Run) -> Slots:
    """The journal as an attempt that loads it would find it: a rolled slot wins over one put again later."""
    found = dict(run.slots)
    items = dict(world.items)
    for name in run.segments:
        found.update(items.get(name, ()))
    return tuple(sorted(found.items()))


def replaced(entries: tuple[object, ...], index: int, entry: object) -> tuple[object, ...]:
    """A tuple with one place changed."""
    return (*entries[:index], entry, *entries[index + 1 :])


def with_attempts(world: World, rest: tuple[Attempt, ...], *more: Attempt) -> World:
    """The world with these functions, in the order of their numbers."""
    return world._replace(attempts=tuple(sorted((*rest, *more), key=lambda a: a.number)))


def told(world: World) -> World:
    """A hint: a control plane looks at the lane when it comes to it."""
    for n in (1, 0):
        found = world.dispatchers[n]
        if found is not None:
            return with_dispatcher(world, n, found._replace(dirty=True))
    return world


def with_dispatcher(world: World, n: int, dispatcher: Dispatcher | None) -> World:
    """The world with one control plane changed."""
    both = world.dispatchers
    return world._replace(dispatchers=(dispatcher, both[1]) if n == 0 else (both[0], dispatcher))


def marked(model: Model, world: World, token: str) -> World:
    """Write 11."""
    head, rules = world.head, model.rules
    changed = head._replace(pend=token if "mark.unique" in rules else "mark")
    if "tok.versioned" not in rules:
        changed = changed._replace(tok=(-1,))
    return world._replace(head=changed)


def with_nap(world: World, n: int, holder: int | None) -> World:
    """The world with what one control plane knows of a nap that it is to end."""
    return world._replace(naps=(holder, world.naps[1]) if n == 0 else (world.naps[0], holder))


def accepted(model: Model, world: World, position: tuple[str, str]) -> World | None:
    """Write 9: the world with the item; None when it is there already, alive or as a tombstone."""
    inbox = dict(world.inbox)
    if position in inbox and "inbox.absent" in model.rules:
        return None
    return world._replace(inbox=tuple(sorted({**inbox, position: "live"}.items())))


def fresh_number(world: World) -> int:
    """The lowest number that nothing in the world still bears: equal futures shall be one state."""
    used: set[int] = set()
    for attempt in world.attempts:
        used |= {attempt.number, attempt.holder}
        used |= {name[1] for name, _ in attempt.put}
    run = world.head.run
    if run is not None:
        used |= {run.holder} if run.nap is None else {run.holder, run.nap}
        used |= {name[1] for name in run.segments}
        if run.own is not None:
            used.add(run.own)
    used |= set(world.head.tok or ())
    used |= {holder for holder in world.naps if holder is not None}
    for process in (*world.dispatchers, *world.callers):
        if process is not None and process.holder is not None:
            used.add(process.holder)
    timers = set(world.timers)
    for dispatcher in world.dispatchers:
        if dispatcher is not None:
            timers |= dispatcher.ended | ({dispatcher.timer} if dispatcher.timer else set())
    used |= {timer.holder for timer in timers if isinstance(timer, GuardTimer) and timer.holder is not None}
    return next(n for n in range(len(used) + 1) if n not in used)
