"""`tenuto set-aside ACTION SERVICE/KEY [NAME]`: items that were set aside because they could not be read.

Owns the command line and what it prints. Does not own what becomes of the items (`admin.set_aside`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from tenuto.protocol.ids import Lane
from tenuto.store.port import Table, TableRefusedError, TableUnavailableError
from tenuto_cli.parsing import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Parser
from tenuto_control.admin import journals
from tenuto_control.admin.set_aside import PAGE_ITEMS_MAX, Listed, SetAside, SetAsideError
from tenuto_control.arguments import whole
from tenuto_control.config import DEFAULT_FILE, ConfigError, load
from tenuto_control.core.log_fields import shown
from tenuto_control.drivers.system import SystemClock

ITEMS_DEFAULT: Final = 50
ITEMS_MAX: Final = 10_000
ACTIONS: Final = ("list", "show", "restore", "delete")

TEXT: Final = (
    "List, show, restore or delete the items of a key that were set aside because they could not be read. Restoring "
    "overwrites nothing and can be repeated. A control plane resumes the key within seconds."
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = Parser(prog="tenuto set-aside", description=TEXT)
    made.add_argument("action", metavar="ACTION", choices=ACTIONS, help=f"one of {', '.join(ACTIONS)}")
    made.add_argument("key", metavar="SERVICE/KEY", help="the key, as in the log line about it")
    made.add_argument("name", nargs="?", metavar="NAME", help="the item's name from the list, such as U#m|…")
    made.add_argument("--all", action="store_true", help="with restore: every item that can be restored, in order")
    made.add_argument(
        "--limit", type=whole(1, ITEMS_MAX), default=ITEMS_DEFAULT, metavar="N", help="with list; default: 50"
    )
    made.add_argument("--after", metavar="NAME", help="with list: continue after this item")
    made.add_argument("--json", action="store_true", help="print one JSON document, for programs")
    file = os.environ.get("TENUTO_CONFIG_FILE") or DEFAULT_FILE
    made.add_argument("--config", default=file, help=f"default: TENUTO_CONFIG_FILE, else {DEFAULT_FILE}")
    return made


def main(given: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(given)
    try:
        lane = _lane(options)
        # Imported here: a mistake in the arguments needs no client.
        from tenuto_control.assembly import with_table

        return asyncio.run(with_table(load(options.config), lambda table: act(table, lane, options)))
    except ConfigError as e:
        print(f"tenuto set-aside: {shown(str(e))}", file=sys.stderr)
        return EXIT_USAGE
    except SetAsideError as e:
        print(f"tenuto set-aside: {shown(str(e))}", file=sys.stderr)
        return EXIT_FAILED
    except (TableUnavailableError, TableRefusedError) as e:
        print(f"tenuto set-aside: the table refused the request: {shown(str(e))}; it can be repeated", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _lane(options: argparse.Namespace) -> Lane:
    """The key that is meant. Raises ConfigError."""
    if not options.key.isprintable() or "/" not in options.key.strip("/"):
        raise ConfigError(f'"{options.key}" is not a key: write SERVICE/KEY, as in the log')
    wants_name = options.action != "list" and not (options.all and options.action == "restore")
    if wants_name and options.name is None:
        raise ConfigError(f"{options.action} needs the NAME of an item; tenuto set-aside list shows them")
    if not wants_name and options.name is not None:
        raise ConfigError(
            "NAME and --all exclude each other"
            if options.all
            else "list takes no NAME; --after NAME continues after an item"
        )
    try:
        return Lane.from_pk(options.key)
    except ValueError as e:
        raise ConfigError(f'"{options.key}" is not a key: {e}') from e


async def act(table: Table, lane: Lane, options: argparse.Namespace) -> int:
    """Perform the action, print its result and return the exit status. Raises SetAsideError."""
    office = SetAside(table, SystemClock(), lane, lambda: f"set-aside-{secrets.token_hex(8)}")
    match options.action:
        case "list":
            return await _list(office, options)
        case "show":
            item = await office.read(options.name)
            plain = {name: journals.plain(value) for name, value in sorted(item.items())}
            if options.json:
                print(json.dumps(plain, indent=2, default=str))
            else:
                for name, value in plain.items():
                    print(f"{shown(name)}  {shown(json.dumps(value, default=str))}")
            return 0
        case "delete":
            await office.delete(options.name)
            _say(options, [{"name": options.name, "done": "deleted"}])
            return 0
        case _:
            return await _restore(office, options)


async def _list(office: SetAside, options: argparse.Namespace) -> int:
    found: list[Listed] = []
    after = options.after
    while True:
        page, after = await office.page(after, min(PAGE_ITEMS_MAX, options.limit - len(found)))
        found += page
        if after is None or len(found) >= options.limit:
            break
    if options.json:
        print(json.dumps({"items": [asdict(one) for one in found], "after": after}, indent=2))
        return 0
    for one in found:
        state = "can be restored" if one.problem is None else one.problem
        print(f"{shown(one.name)}  {one.kind}, {one.size:,} bytes: {shown(one.why or state)}")
        if one.why and one.problem is None:
            print("    this version can read it: it can be restored")
    if not found:
        print("nothing is set aside for this key")
    if after is not None:
        print(f"more items: --after '{shown(after)}'")
    return 0


async def _everything(office: SetAside) -> AsyncIterator[Listed]:
    """All of it: payloads and bundles first, then the entries that name them, then what waits in the inbox."""
    for wanted in (("payload", "bundle"), ("outgoing entry",), ("call", "message", "records", "unknown")):
        after: str | None = None
        while True:
            page, after = await office.page(after)
            for one in page:
                if one.kind in wanted:
                    yield one
            if after is None:
                break


async def _restore(office: SetAside, options: argparse.Namespace) -> int:
    if not options.all:
        _say(options, [{"name": options.name, "done": await office.restore(options.name)}])
        return 0
    said: list[dict[str, Any]] = []
    left = 0
    async for one in _everything(office):
        try:
            said.append({"name": one.name, "done": await office.restore(one.name)})
        except SetAsideError as e:
            left += 1
            said.append({"name": one.name, "problem": str(e)})
    _say(options, said)
    return EXIT_FAILED if left else 0


def _say(options: argparse.Namespace, said: Sequence[dict[str, Any]]) -> None:
    if options.json:
        print(json.dumps({"items": list(said)}, indent=2))
        return
    for one in said:
        print(f"{shown(one['name'])}  {shown(one.get('done') or 'left: ' + one['problem'])}")
    if not said:
        print("nothing is set aside for this key")
