"""Journals of invocations under way, replayed against other code than the one that made them.

Owns the claims about divergence. Does not own exporting from a real table (`tests/control/test_journals`).
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tenuto import JournalMismatchError, ObjectContext, VirtualObject
from tenuto.testing import Environment, HarnessError, NoSuchHandlerError, Replayed
from tests.support import bounded

ran: list[str] = []


def step(name: str) -> str:
    ran.append(name)
    return name


def version(*names: str, sleeps: bool = True, fails: bool = False) -> VirtualObject:
    """An object whose handler runs these steps, and sleeps after the first two."""
    parcel = VirtualObject("parcel")

    @parcel.handler()
    async def travel(ctx: ObjectContext) -> list[str]:
        done: list[str] = []
        for number, name in enumerate(names):
            if number == 2 and sleeps:
                await ctx.sleep(timedelta(days=1))
            done.append(await ctx.run(name, step, name))
        if fails:
            raise ValueError("not in production")
        return done

    return parcel


def journal_of(parcel: VirtualObject) -> bytes:
    """The journal of a journey that sleeps."""
    with Environment(parcel) as env:
        return env.export_journal(env.send("parcel/travel", "p-1").result()).result()


def replay(journal: Any, parcel: VirtualObject) -> Replayed:
    ran.clear()
    with Environment(parcel) as env:
        found = env.replay(journal).result()
    assert ran == [], "a replay runs no step"
    return found


def test_the_same_code_goes_the_same_way(tmp_path: Path) -> None:
    journal = journal_of(version("pack", "load", "carry"))
    file = tmp_path / "journal.json"
    file.write_bytes(journal)
    found = replay(file, version("pack", "load", "carry"))
    assert (found.handler, found.commands, found.then) == ("parcel/travel", 3, "it waits")


def test_another_name_of_a_step_diverges() -> None:
    journal = journal_of(version("pack", "load", "carry"))
    with pytest.raises(
        JournalMismatchError, match="command 1: the journal has run 'load', the handler now issued run 'x"
    ):
        replay(journal, version("pack", "x-ray", "carry"))


def test_a_handler_that_ends_earlier_diverges() -> None:
    journal = journal_of(version("pack", "load", "carry"))
    with pytest.raises(HarnessError, match="the journal has sleep, the handler now issued nothing more"):
        replay(journal, version("pack", "load", sleeps=False))


def test_what_comes_behind_the_journal_does_not_run() -> None:
    journal = journal_of(version("pack", "load", "carry"))
    with pytest.raises(JournalMismatchError, match="the journal has sleep, the handler now issued run 'carry'"):
        replay(journal, version("pack", "load", "carry", sleeps=False))


def test_a_failure_of_the_new_code_is_raised() -> None:
    journal = journal_of(version("pack", "load", "carry"))
    with pytest.raises(ValueError, match="not in production"):
        replay(journal, version("pack", "load", sleeps=False, fails=True))


def test_a_step_behind_the_journal_ends_the_replay() -> None:
    journal = journal_of(version("pack", "load", "carry"))
    with Environment(version("pack", "load", "carry")) as env:
        assert env.replay(journal).result().then == "it waits"
    found = replay(_without_its_sleep(journal), version("pack", "load", "carry", sleeps=False))
    assert found.then == "it would run 'carry'"
    assert found.commands == 2


def _without_its_sleep(journal: bytes) -> bytes:
    """The same journal as of a handler that has not come to its sleep."""
    record = json.loads(journal)
    for item in record["items"]:
        for name in [name for name in item if name.endswith("2d")]:
            del item[name]
    return json.dumps(record).encode()


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    parcel = version("pack", "load", "carry")
    with pytest.raises(HarnessError, match="this is not a journal"):
        replay(b"{}", parcel)
    with pytest.raises(HarnessError, match="cannot be read: No such file"):
        replay(tmp_path / "none.json", parcel)
    journal = journal_of(parcel)
    with pytest.raises(NoSuchHandlerError, match="parcel/travel, which is not served here any more"):
        replay(journal, VirtualObject("parcel"))


def test_an_invocation_that_has_ended_has_no_journal() -> None:
    with Environment(version("pack", "load", "carry")) as env:
        invocation = env.send("parcel/travel", "p-1").result()
        env.advance(days=2).result()
        with pytest.raises(HarnessError, match="a journal ends with its invocation"):
            env.export_journal(invocation).result()


def test_a_replay_in_a_coroutine() -> None:
    parcel = version("pack", "load", "carry")
    journal = journal_of(parcel)

    async def main() -> str:
        async with Environment(parcel) as env:
            return (await env.replay(journal)).then

    assert bounded.run(main()) == "it waits"
