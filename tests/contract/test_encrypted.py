"""What is in a table whose payloads are encrypted: nothing readable, and nothing that was altered or moved opens.

Owns the form at rest. That an encrypted table behaves as any other is `test_table`'s; that a whole system works on it,
the stack's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import pytest

from tenuto import ObjectContext, VirtualObject
from tenuto.lane.head import UnreadableHeadError, parse_head
from tenuto.lane.writes import Absent, Answer, Applied, Delete, Foreign, Item, Key, Put, Refused, Update, Write
from tenuto.protocol.ids import Lane
from tenuto.protocol.records import BundleOut, pack
from tenuto.service import Services
from tenuto.store.data_keys import StoredDataKeys
from tenuto.store.encrypted import EncryptedTable
from tenuto.store.expressions import marshal
from tenuto.store.memory import MemoryTable
from tenuto.store.port import Page, UnopenedError
from tenuto_control.core.metrics import Uncounted
from tenuto_control.dispatcher.outages import watched
from tenuto_control.dispatcher.undeliverable import Undeliverable
from tenuto_control.dispatcher.writer import Writer
from tenuto_control.limits import Limits
from tests.costs.meter import CountingTable, Meter
from tests.support.memory_kms import MemoryKms
from tests.support.virtual_time import run_virtual

MARK: Final = "quite-unmistakable"
FAILURES: Final = 6
"""More than are retried without letting go of the function, so that the last error is stored."""

AT = Key("box/a", "H")


def encrypted(table: MemoryTable, kms: MemoryKms | None = None) -> EncryptedTable:
    return EncryptedTable(table, StoredDataKeys(table, kms or MemoryKms(), makes=True))


def stored(table: MemoryTable, key: Key = AT) -> Item:
    return table.items[key.pk, key.sk]


def test_what_is_at_rest_is_encrypted_and_what_is_answered_is_not() -> None:
    async def main() -> None:
        table = MemoryTable()
        view = encrypted(table)
        sets: Item = {"s.a": b"state", "err": "it said state", "ver": 3, "tok": "t", "b.a": None, "seg": ["J#1"]}
        whole = {"pk": AT.pk, "sk": AT.sk, **sets}
        assert await view.write(Update(AT, sets)) == Applied(whole)
        assert await view.write(Update(AT, {}, (), (Absent("free", "ver"),))) == Refused(whole)
        assert await view.get(AT) == whole
        assert await view.query(AT.pk, "A", "Z") == Page([whole])
        at_rest = stored(table)
        assert {name for name, value in at_rest.items() if value != whole[name]} == {"s.a", "err"}
        assert b"state" not in repr(at_rest).encode()

    asyncio.run(main())


def test_the_same_value_never_looks_the_same() -> None:
    async def main() -> None:
        table = MemoryTable()
        view = encrypted(table)
        seen = set()
        for _ in range(20):
            await view.write(Put(AT, {"res": b"yes"}))
            seen.add(repr(stored(table)["res"]))
        assert len(seen) == 20

    asyncio.run(main())


@pytest.mark.parametrize("how", ["altered", "cut", "another name", "another sort key", "another partition"])
def test_a_value_that_was_tampered_with_does_not_open(how: str) -> None:
    async def main() -> None:
        table = MemoryTable()
        view = encrypted(table)
        await view.write(Update(AT, {"s.a": b"mine", "s.b": b"other"}))
        value: Any = stored(table)["s.a"]
        number, sealed = value
        key, name = AT, "s.a"
        match how:
            case "altered":
                value = [number, sealed[:-1] + bytes([sealed[-1] ^ 1])]
            case "cut":
                value = [number, sealed[:8]]
            case "another name":
                name = "s.b"
            case "another sort key":
                key = Key(AT.pk, "J#1")
            case _:
                key = Key("box/b", AT.sk)
        await table.write(Update(key, {name: value}))
        if key.sk != AT.sk:
            with pytest.raises(UnopenedError, match="does not open under its data key"):
                await view.get(key)
            return
        # Of a head, each attribute is judged by itself, whoever reads or writes it.
        answer = await view.write(Update(key, {"s.c": b"new"}))
        for head in (await view.get(key), answer.item):
            assert head is not None
            assert isinstance(head[name], Foreign)
            assert head["s.c"] == b"new"
            with pytest.raises(UnreadableHeadError, match="does not open under its data key"):
                parse_head(head)

    asyncio.run(main())


def test_an_outgoing_entry_that_does_not_open_is_set_aside_as_it_is() -> None:
    async def main() -> None:
        table = MemoryTable()
        view = encrypted(table)
        sealed: Any = [1, b"nothing of ours"]
        bundle = pack(BundleOut("O#1"))
        await view.write(Update(AT, {"s.a": b"mine", "o.000000000001.000002": bundle}))
        await table.write(Update(AT, {"o.000000000001.000001": sealed}))
        await table.write(Put(Key(AT.pk, "O#1"), {"outs": sealed}))
        head = parse_head(await view.get(AT))
        assert head.state == {"a": b"mine"}
        writer = Writer(watched(view, Uncounted()), Limits(), Uncounted())
        apart = Undeliverable(writer, Uncounted())
        lane, item = Lane.from_pk(AT.pk), await writer.read_apart(Key(AT.pk, "O#1"))
        assert await apart.took(lane, "000000000001.000001", head.out["000000000001.000001"])
        assert isinstance(head.out["000000000001.000002"], BundleOut)
        assert item is not None
        assert not await apart.readable(lane, "000000000001.000002", head.out["000000000001.000002"], item)
        for name, attribute in (("U#O#000000000001.000001", "out"), ("U#O#1", "outs")):
            kept = stored(table, Key(AT.pk, name))
            assert marshal(kept[attribute]) == marshal(sealed)
            assert "does not open under its data key" in str(kept["why"])
        assert await writer.read_apart(Key(AT.pk, "O#1")) is None

    asyncio.run(main())


@pytest.mark.parametrize(
    "sealed", [[1, b"nothing of ours"], [1, b""], [999, b"of a key that is not there"], [-1, b"x"]]
)
def test_an_item_that_does_not_open_hides_none_of_those_beside_it(sealed: list[Any]) -> None:
    async def main() -> None:
        table = MemoryTable()
        view = encrypted(table)
        for name in ("I#1", "I#3"):
            await view.write(Put(Key(AT.pk, name), {"ev": name.encode()}))
        await table.write(Put(Key(AT.pk, "I#2"), {"ev": sealed, "at": 5}))
        first, odd, last = (await view.query(AT.pk, "I#", "I$")).items
        assert (first["ev"], last["ev"]) == (b"I#1", b"I#3")
        assert isinstance(odd["ev"], Foreign)
        assert odd["at"] == 5
        assert marshal(odd["ev"]) == marshal(sealed), "moved elsewhere, it is what it was"
        await view.write(Put(Key(AT.pk, "U#2"), {"ev": odd["ev"], "at": 5}))
        assert stored(table, Key(AT.pk, "U#2"))["ev"] == odd["ev"]

    asyncio.run(main())


def test_values_from_before_encryption_stay_readable_until_they_are_written_again() -> None:
    async def main() -> None:
        table = MemoryTable()
        await table.write(Update(AT, {"s.old": b"in the clear", "err": "so is this"}))
        view = encrypted(table)
        answer = await view.write(Update(AT, {"s.new": b"hidden"}))
        assert answer.item == {"pk": AT.pk, "sk": AT.sk, "s.old": b"in the clear", "s.new": b"hidden"} | {
            "err": "so is this"
        }
        await view.write(Update(AT, {"s.old": b"hidden as well", "err": "and this"}))
        assert b"hidden" not in repr(stored(table)).encode()
        assert "clear" not in repr(stored(table))
        assert "this" not in repr(stored(table))

    asyncio.run(main())


def test_values_of_older_data_keys_stay_readable() -> None:
    async def main() -> None:
        table, kms = MemoryTable(), MemoryKms()
        await encrypted(table, kms).write(Update(AT, {"s.a": b"first"}))
        await StoredDataKeys(table, kms, makes=True).rotate()
        later = encrypted(table, kms)
        await later.write(Update(AT, {"s.b": b"second"}))
        assert await later.get(AT) == {"pk": AT.pk, "sk": AT.sk, "s.a": b"first", "s.b": b"second"}
        values: list[Any] = [stored(table)[name] for name in ("s.a", "s.b")]
        assert [value[0] for value in values] == [1, 2]

    asyncio.run(main())


# --- a whole system ------------------------------------------------------------------------------------------------


class AtRest(CountingTable):
    """A counting table that holds what an encrypted one stores; read and written through it like any other."""

    def __init__(self) -> None:
        super().__init__()
        self._view = encrypted(_Raw(self))
        self.seen: list[Item] = []

    async def write(self, write: Write) -> Answer:
        return await self._view.write(write)

    async def get(self, key: Key) -> Item | None:
        return await self._view.get(key)

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        return await self._view.query(pk, low, high, limit=limit, after=after)

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        return await self._view.get_all(keys)

    async def put_all(self, puts: Sequence[Put]) -> None:
        await self._view.put_all(puts)


class _Raw(MemoryTable):
    """The table itself, past its encrypting methods. Keeps a copy of everything that was ever stored."""

    def __init__(self, table: AtRest) -> None:
        super().__init__()
        self.items = table.items
        self._table = table

    async def write(self, write: Write) -> Answer:
        answer = await CountingTable.write(self._table, write)
        if answer.item is not None:
            self._table.seen.append(dict(answer.item))
        return answer

    async def get(self, key: Key) -> Item | None:
        return await CountingTable.get(self._table, key)

    async def query(self, pk: str, low: str, high: str, *, limit: int = 100, after: str | None = None) -> Page:
        return await CountingTable.query(self._table, pk, low, high, limit=limit, after=after)

    async def get_all(self, keys: Sequence[Key]) -> list[Item | None]:
        return await CountingTable.get_all(self._table, keys)

    async def put_all(self, puts: Sequence[Put]) -> None:
        await CountingTable.put_all(self._table, puts)
        self._table.seen += [{"pk": put.key.pk, "sk": put.key.sk, **put.attributes} for put in puts]

    async def delete_all(self, deletes: Sequence[Delete]) -> None:
        await CountingTable.delete_all(self._table, deletes)


def test_nothing_of_an_invocation_is_stored_in_the_clear() -> None:
    box, ends = VirtualObject("box"), list[str]()

    @box.handler()
    async def work(ctx: ObjectContext, value: str) -> None:
        ctx.set("value", value)
        await ctx.run("step", lambda: f"{value} step")
        await ctx.run("large", lambda: value * 1_000)
        ctx.object_send(box.handlers["end"], "k", f"{value} sent", send_delay=timedelta(seconds=40))
        awakeable, answer = ctx.awakeable(str)
        ctx.object_send(box.handlers["answer"], "helper", {"to": awakeable, "with": f"{value} answer"})
        await ctx.sleep(timedelta(seconds=30))
        ctx.set("answer", await answer)
        if len(failures) < FAILURES:
            failures.append(value)
            raise RuntimeError(f"{value} in an error")

    @box.handler()
    async def answer(ctx: ObjectContext, told: dict[str, str]) -> None:
        ctx.resolve_awakeable(told["to"], told["with"])

    @box.handler()
    async def end(ctx: ObjectContext, value: str) -> None:
        ends.append(value)
        ends.append(await ctx.get("answer", str) or "nothing yet")

    table, failures = AtRest(), list[str]()

    async def scenario() -> None:
        meter = Meter(Services([box]), table=table)
        for _ in range(3):
            # The second and third wait so long that they are spilled.
            meter.deliver(box.handlers["work"], "k", f'"{MARK}"'.encode())
        await asyncio.sleep(600)
        await meter.quiet()

    run_virtual(scenario())
    assert failures == [MARK] * FAILURES
    assert {f"{MARK} sent", f"{MARK} answer"} <= set(ends)
    # All kinds of items took part: heads, spilled inboxes, rolled journals, timers.
    kinds = {str(item["sk"])[:2] if item["pk"] == "box/k" else str(item["pk"])[:2] for item in table.seen}
    assert {"H", "I#", "J#", "T#"} <= kinds
    assert any("err" in item for item in table.seen)
    assert [item for item in table.seen if MARK in repr(item)] == []
