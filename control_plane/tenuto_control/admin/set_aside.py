"""What was set aside beside a key because it could not be read: listed, shown, put back, deleted.

Owns these four, for one key at a time, and that putting something back may be repeated. Does not own what is set aside
and why (`dispatcher.undeliverable`, `dispatcher.inbox`), nor the operator's command (`tenuto_cli.set_aside`).

Nothing that is there now is written over. An item of an inbox takes the place of the tombstone that was left for it
when it was set aside, and of no other: so an item that is put back, and has run, is not put back once more. What was
begun is therefore noted in the item set aside, and counts for half as long as tombstones last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from tenuto.lane.head import OUT, head_key
from tenuto.lane.items import SET_ASIDE, payload_in, unbundled_apart
from tenuto.lane.timers import GuardTimer, timer_put
from tenuto.lane.tombstones import is_tombstone, ttl_of
from tenuto.lane.transitions import check_inbox_events, check_waiting, mark_pend
from tenuto.lane.writes import Absent, Applied, Clause, Delete, Equals, Foreign, Item, Key, Put, Update, Value
from tenuto.protocol.ids import Lane, digest
from tenuto.protocol.limits import TOMBSTONE_TTL_S
from tenuto.protocol.records import unpack_out
from tenuto.store.port import Table
from tenuto.store.sizes import item_bytes
from tenuto_control.core.outcomes import kept_entry_problem
from tenuto_control.ports import Clock

LOW: Final = SET_ASIDE
HIGH: Final = "U$"
"""Between these are the sort keys of what was set aside."""

PAGE_ITEMS_MAX: Final = 100
"""Items of one page: each may have 400 KB."""

REPEAT_MS_MAX: Final = TOMBSTONE_TTL_S * 1000 // 2
"""How long after it began an item may be put back again: while tombstones would refuse a second run."""

GUARD_DELAY_MS: Final = 5_000
"""When a control plane looks at the key of what was put back, at the latest."""

NOTES: Final = ("why", "back_ms", "back_ttl")
"""Attributes that were added: why it was set aside, and when putting it back began, over which tombstone."""

_PLACE: Final = re.compile(r"\d{12,}\.\d{6,}", re.ASCII)
_ANY_PLACE: Final = "000000000001.000000"


class SetAsideError(Exception):
    """It cannot be done. The message says why, and what can be done instead, fit for an operator."""


@dataclass(frozen=True, slots=True)
class Beside:
    """It goes back to an item of its own: an item of the inbox, a bundle or a payload."""

    key: Key
    attributes: Mapping[str, Value]
    waits: str | None = None
    """For an item of the inbox, what waits there."""


@dataclass(frozen=True, slots=True)
class InHead:
    """It goes back to a place of the outbox, which is in the record of its key."""

    place: str
    entry: Value


Way = Beside | InHead


@dataclass(frozen=True, slots=True)
class Listed:
    """One thing that was set aside: its name, what it is, why it was set aside, and why it cannot be put back."""

    name: str
    kind: str
    size: int
    why: str | None
    problem: str | None


@dataclass(slots=True)
class SetAside:
    """What was set aside beside one key. `token` gives a name that nobody else uses.

    All methods raise TableUnavailableError and TableRefusedError, and may be repeated then.
    """

    table: Table
    clock: Clock
    lane: Lane
    token: Callable[[], str]

    async def page(self, after: str | None = None, limit: int = PAGE_ITEMS_MAX) -> tuple[list[Listed], str | None]:
        """Some of it, in the order of their names, and where to continue; None at the end."""
        page = await self.table.query(self.lane.pk, LOW, HIGH, limit=min(limit, PAGE_ITEMS_MAX), after=after)
        return [self._listed(item) for item in page.items], page.last

    async def read(self, name: str) -> Item:
        """An item, as it was set aside. Raises SetAsideError when it is not there."""
        item = await self.table.get(Key(self.lane.pk, name)) if name.startswith(LOW) else None
        if item is None:
            raise SetAsideError(f"nothing of that name is set aside for this key: {name}")
        return item

    async def delete(self, name: str) -> None:
        """Forget it for good. Raises SetAsideError when it is not there."""
        await self.read(name)
        await self.table.write(Delete(Key(self.lane.pk, name)))

    async def restore(self, name: str) -> str:
        """Put it back where it was, and have a control plane look at its key; what was done, in a word or two.

        Raises SetAsideError when this version cannot read it either, or something else is in its place.
        """
        item = await self.read(name)
        way = way_back(self.lane, item)
        since_ms = item.get("back_ms")
        if isinstance(since_ms, int) and self.clock.now_ms() - since_ms > REPEAT_MS_MAX:
            raise SetAsideError(
                "a restore of it began long ago and did not end, so it may have run; find out whether it has, then "
                "delete it or send it again"
            )
        match way:
            case Beside():
                done = await self._put_beside(item, way)
            case InHead():
                done = await self._put_in_head(item, way)
            case _:
                assert_never(way)
        await self.table.write(Delete(Key(self.lane.pk, name)))
        return done

    def _listed(self, item: Item) -> Listed:
        why, problem = item.get("why"), None
        try:
            way_back(self.lane, item)
        except SetAsideError as e:
            problem = str(e)
        name = str(item["sk"])
        return Listed(name, _kind(name, item), item_bytes(item), why if isinstance(why, str) else None, problem)

    async def _put_beside(self, item: Item, way: Beside) -> str:
        there = await self.table.get(way.key)
        over = _tombstone(there)
        begun = item.get("back_ttl")
        if begun is None:
            if there is not None and over is None and not _same(there, way.attributes):
                raise SetAsideError(f"another item is in its place, {way.key.sk}: it was put there since")
            begun = over or 0
            await self._begin(item, begun)
        if over != begun and not (there is None and begun == 0):
            # It is there already, or was, and has run.
            await self._look(way.waits)
            return "it was put back before"
        free: tuple[Clause, ...] = (Absent("restore.free", "pk"),)
        if there is not None:
            free = (Equals("restore.ttl", "ttl", begun), Absent("restore.over", "ev"))
        if not isinstance(await self.table.write(Put(way.key, way.attributes, free)), Applied):
            raise SetAsideError("something has changed in its place meanwhile; try again")
        await self._look(way.waits)
        return "put back"

    async def _put_in_head(self, item: Item, way: InHead) -> str:
        at, attribute = head_key(self.lane), OUT + way.place
        there = (await self.table.get(at) or {}).get(attribute)
        begun = "back_ms" in item
        if there is not None and not (begun and there == way.entry):
            raise SetAsideError(
                "its place in the outbox is taken: a control plane has not cleared it yet; try again in a minute"
            )
        if not begun:
            await self._begin(item, 0)
        if there is None:
            write = Update(at, {attribute: way.entry}, conditions=(Absent("restore.free", attribute),))
            if not isinstance(await self.table.write(write), Applied):
                raise SetAsideError("something has changed in its place meanwhile; try again")
        await self._guard(way.place)
        return "put back" if there is None else "it was put back before"

    async def _begin(self, item: Item, ttl: int) -> None:
        """Note that it is being put back, before it is: whoever repeats it knows what it was put over."""
        notes: dict[str, Value] = {"back_ms": self.clock.now_ms(), "back_ttl": ttl}
        here = Equals("restore.here", "pk", self.lane.pk), Absent("restore.first", "back_ms")
        write = Update(Key(self.lane.pk, str(item["sk"])), notes, conditions=here)
        if not isinstance(await self.table.write(write), Applied):
            raise SetAsideError("another process is restoring it or has deleted it; list shows what is left")

    async def _look(self, waits: str | None) -> None:
        """Have a control plane look into the inbox. What is no item of the inbox waits for its entry."""
        if waits is not None:
            await self._guard(waits)
            await self.table.write(mark_pend(self.lane, self.token()))

    async def _guard(self, what: str) -> None:
        due_ms = self.clock.now_ms() + GUARD_DELAY_MS
        await self.table.write(timer_put(GuardTimer(self.lane, digest(what), due_ms, self.token())))


def way_back(lane: Lane, item: Item) -> Way:
    """Where what was set aside goes back to. Raises SetAsideError when it cannot: this version would not read it."""
    name = str(item["sk"])
    attributes = {at: value for at, value in item.items() if at not in ("pk", "sk", *NOTES)}
    sealed = next((value for value in attributes.values() if isinstance(value, Foreign)), None)
    if sealed is not None:
        raise SetAsideError(f"a value of it cannot be read: {sealed.reason}")
    try:
        if name.startswith("U#O#") and "out" in item:
            return _to_head(lane, name.removeprefix("U#O#"), item["out"])
        beside = not name.startswith(("U#c#", "U#m|", "U#k|"))
        key = Key(lane.pk, name.removeprefix(LOW) if beside else f"I{name[1:]}")
        back: Item = {"pk": key.pk, "sk": key.sk, **attributes}
        if beside:
            _check_beside(key.sk, back)
            return Beside(key, attributes)
        for event in (events := check_inbox_events(lane, back)):
            check_waiting(lane, event)
        if not events:
            raise SetAsideError("it contains nothing that could run")
        return Beside(key, attributes, events[0].nonce)
    except ValueError as e:
        raise SetAsideError(f"this version cannot read it either: {e}") from e


def _to_head(lane: Lane, place: str, entry: Value) -> InHead:
    if _PLACE.fullmatch(place) is None:
        raise SetAsideError("its place in the outbox is not known any more; send what it holds again")
    if not isinstance(entry, bytes):
        raise SetAsideError("it holds no entry of an outbox")
    problem = kept_entry_problem(place, unpack_out(entry), lane)
    if problem is not None:
        raise SetAsideError(f"it can never be delivered: {problem}")
    return InHead(place, entry)


def _check_beside(name: str, back: Item) -> None:
    """Raises ValueError when an item beside a head does not hold what its name says."""
    if name.startswith("O#"):
        if any(isinstance(entry, bytes) for entry in unbundled_apart(_ANY_PLACE, back).values()):
            raise ValueError("an entry of the bundle")
    elif name.startswith("V#"):
        payload_in(back)
    else:
        raise SetAsideError("this version cannot restore items of this kind; a newer one may have set it aside")


def _tombstone(item: Item | None) -> int | None:
    """The time to live of a tombstone; None when an item is none."""
    if item is None or not is_tombstone(item) or "ev" in item:
        return None
    return ttl_of(item)


def _same(there: Item, attributes: Mapping[str, Value]) -> bool:
    return {name: value for name, value in there.items() if name not in ("pk", "sk")} == dict(attributes)


def _kind(name: str, item: Item) -> str:
    if name.startswith("U#O#"):
        return "outgoing entry" if "out" in item else "bundle"
    kinds = {"U#c#": "call", "U#m|": "message", "U#k|": "records", "U#V#": "payload"}
    return kinds.get(name[:4], "unknown")
