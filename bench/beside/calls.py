"""The load generators for calls, the same for both systems: wrk for as many as there can be, our own at a steady rate.

wrk takes 20 to 30 µs of CPU a call. Where it is not installed, our own generator takes its place for both systems; it
takes ten times as much of the machine that it shares with them, so such figures are lower for both, and say so.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import aiohttp

from bench.beside.sides import Side
from bench.kafka_load import WrongOutcomeError
from tenuto_local.processes import ManagedProcess

OK: Final = 200
CALL_TIMEOUT_S: Final = 60.0
WRK_GRACE_S: Final = 30.0
OWN: Final = "our own (aiohttp); wrk is not installed (Debian and Ubuntu: apt-get install wrk)"

SCRIPT: Final = """\
local n = 0
local pad = string.rep("x", 150)
request = function()
  n = n + 1
  local body = string.format('{"number": %%d, "at": 0, "pad": "%%s"}', 100000000 + n, pad)
  return wrk.format("POST", "%(path)s/call-" .. math.random(0, %(last)d) .. "/%(handler)s",
    {["content-type"] = "application/json"}, body)
end
done = function(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.status + errors.connect + errors.read + errors.timeout
  local result = 'RESULT {"calls": %%d, "us": %%d, "failed": %%d}\\n'
  io.write(string.format(result, summary.requests, summary.duration, failed))
end
"""


@dataclass(frozen=True, slots=True)
class Flooded:
    """Calls that were answered, and how many a second."""

    calls: int
    per_s: float


class CallGenerator:
    """Calls a handler over HTTP. `name` says which generator it is."""

    keys_max: Final = 1000
    """Calls go to keys `call-0` to `call-999`."""

    def __init__(self, wrk: str | None = None) -> None:
        self._wrk = wrk or shutil.which("wrk")
        self.name = "wrk" if self._wrk else OWN

    async def flood(self, side: Side, handler: str, keys: int, connections: int, seconds: float) -> Flooded:
        """As many calls as `connections` carry. Raises WrongOutcomeError when one is not answered by 200."""
        keys = min(keys, self.keys_max)
        if self._wrk is None:
            return await self._own(side, handler, keys, connections, seconds)
        base, _, path = side.service_url.removeprefix("http://").partition("/")
        folder = side.readings.path.parent
        script = folder / "calls.lua"
        script.write_text(SCRIPT % {"path": "/" + path, "last": keys - 1, "handler": handler})
        options = ["-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", f"{CALL_TIMEOUT_S:.0f}s"]
        process = ManagedProcess("wrk", [self._wrk, *options, "-s", str(script), f"http://{base}"], folder / "wrk.log")
        process.spawn()
        try:
            status = await process.wait_exit(seconds + CALL_TIMEOUT_S + WRK_GRACE_S)
            return read_wrk(side.name, status, process.log_since_start())
        finally:
            await process.kill()

    async def steadily(self, side: Side, handler: str, keys: int, rate_per_s: float, seconds: float) -> list[float]:
        """Calls at a steady rate; the milliseconds of each, from when it was due to its answer."""
        taken: list[float] = []

        async def call(number: int, due_s: float) -> None:
            await _call(session, side.call_url(f"steady-{number % keys}", handler), number)
            taken.append(1000 * (time.perf_counter() - due_s))

        async with _session() as session:
            # The first call opens a connection, which is no part of a steady rate.
            await _call(session, side.call_url("steady-0", handler), 0)
            start_s = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for number in range(round(rate_per_s * seconds)):
                    due_s = start_s + number / rate_per_s
                    await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                    group.create_task(call(number, due_s))
        return taken

    async def _own(self, side: Side, handler: str, keys: int, connections: int, seconds: float) -> Flooded:
        done = 0
        start_s = time.perf_counter()

        async def connection(numbers: Iterator[int]) -> None:
            nonlocal done
            for number in numbers:
                if time.perf_counter() - start_s > seconds:
                    return
                await _call(session, side.call_url(f"call-{number * 7919 % keys}", handler), number)
                done += 1

        async with _session() as session:
            numbers = iter(range(100_000_000))
            async with asyncio.TaskGroup() as group:
                for _ in range(connections):
                    group.create_task(connection(numbers))
        return Flooded(done, done / (time.perf_counter() - start_s))


def read_wrk(side: str, status: int | None, printed: str) -> Flooded:
    """What a run of wrk found. Raises WrongOutcomeError for one that failed, or in which a call did."""
    line = next((line for line in printed.splitlines() if line.startswith("RESULT ")), None)
    if status != 0 or line is None:
        raise WrongOutcomeError(f"{side}: wrk ended with {status}: {printed.strip()[-300:] or 'it said nothing'}")
    result = json.loads(line.removeprefix("RESULT "))
    if result["failed"]:
        raise WrongOutcomeError(f"{side}: {result['failed']} of {result['calls']} calls failed")
    return Flooded(result["calls"], result["calls"] / (result["us"] / 1e6))


async def _call(session: aiohttp.ClientSession, url: str, number: int) -> None:
    async with session.post(url, json={"number": number, "at": 0, "pad": "x" * 150}) as answer:
        body = await answer.read()
        if answer.status != OK:
            raise WrongOutcomeError(f"a call was answered {answer.status}: {body[:200]!r}")


def _session() -> aiohttp.ClientSession:
    # As many connections as calls need at once: what waits here would not be seen by the system.
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S), connector=aiohttp.TCPConnector(limit=0)
    )
