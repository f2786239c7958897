"""Credentials of clients that sign by themselves: looked up once, renewed beside requests, waited for at the end.

Owns the timing. Does not own where credentials come from.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from aiobotocore.credentials import AioCredentials, AioRefreshableCredentials
from botocore.exceptions import CredentialRetrievalError, NoCredentialsError

from tenuto.wire.sigv4 import Credentials
from tenuto_control.drivers.aws_credentials import LOOK_INTERVAL_S, SessionCredentials


class Session:
    """What is asked of an aiobotocore session."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.asked = 0

    async def get_credentials(self) -> Any:
        """Look them up, which takes a moment."""
        self.asked += 1
        await asyncio.sleep(0)
        return self.held


class Source:
    """Credentials that last as long as a test says."""

    def __init__(self, lasts_s: float) -> None:
        self.lasts_s = lasts_s
        self.renewals = 0
        self.fails = False
        self.now_s = dt.datetime.now(dt.UTC).timestamp()

    def metadata(self) -> dict[str, str]:
        """The next key."""
        expires = dt.datetime.fromtimestamp(self.now_s + self.lasts_s, dt.UTC)
        return {
            "access_key": f"key{self.renewals}",
            "secret_key": "s",
            "token": "t",
            "expiry_time": expires.isoformat(),
        }

    async def renew(self) -> dict[str, str]:
        """As an instance's role is asked."""
        await asyncio.sleep(0)
        if self.fails:
            raise CredentialRetrievalError(provider="test", error_msg="no answer")
        self.renewals += 1
        return self.metadata()

    def held(self) -> Any:
        """Credentials that botocore renews."""
        held: Any = AioRefreshableCredentials.create_from_metadata(
            self.metadata(), refresh_using=self.renew, method="test"
        )
        held._time_fetcher = lambda: dt.datetime.fromtimestamp(self.now_s, dt.UTC)
        return held


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    """Credentials that last for an hour, on a clock that a test moves."""
    source = Source(3_600)
    monkeypatch.setattr("tenuto_control.drivers.aws_credentials.time.time", lambda: source.now_s)
    return source


def key(credentials: SessionCredentials) -> str | None:
    """The key to sign with now."""
    current = credentials.current
    return None if current is None else current.access_key


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it."""
    asyncio.run(scenario())


def test_fixed_ones_are_looked_up_once() -> None:
    async def scenario() -> None:
        session = Session(AioCredentials("a", "s", "t"))
        credentials = SessionCredentials(session)
        assert key(credentials) is None
        found = await asyncio.gather(*(credentials.renewed() for _ in range(5)))
        assert set(found) == {Credentials("a", "s", "t")}
        assert credentials.current is found[-1]
        assert session.asked == 1
        await credentials.close()

    play(scenario)


def test_none_at_all_is_an_error_each_time() -> None:
    async def scenario() -> None:
        credentials = SessionCredentials(Session(None))
        for _ in range(2):
            with pytest.raises(NoCredentialsError):
                await credentials.renewed()

    play(scenario)


def test_they_are_renewed_beside_the_requests(source: Source) -> None:
    async def scenario() -> None:
        credentials = SessionCredentials(Session(source.held()))
        await credentials.renewed()
        source.now_s += 3_600 - 14 * 60
        # Within fifteen minutes of their end: good to sign with, and new ones are on their way.
        assert key(credentials) == "key0"
        async with asyncio.timeout(20):
            while key(credentials) == "key0":  # noqa: ASYNC110 - a task of the credentials' own
                await asyncio.sleep(0)
        assert key(credentials) == "key1"
        assert source.renewals == 1
        await credentials.close()

    play(scenario)


def test_a_renewal_that_fails_leaves_those_that_are_good(source: Source) -> None:
    async def scenario() -> None:
        credentials = SessionCredentials(Session(source.held()))
        await credentials.renewed()
        source.fails = True
        source.now_s += 3_600 - 14 * 60
        for _ in range(5):
            assert key(credentials) == "key0"
            await asyncio.sleep(0)
            source.now_s += LOOK_INTERVAL_S
        source.fails = False
        source.now_s += LOOK_INTERVAL_S
        assert key(credentials) == "key0"
        for _ in range(5):
            await asyncio.sleep(0)
        assert key(credentials) == "key1"
        await credentials.close()

    play(scenario)


def test_those_that_are_about_to_end_are_waited_for(source: Source) -> None:
    async def scenario() -> None:
        credentials = SessionCredentials(Session(source.held()))
        await credentials.renewed()
        # A process that was frozen wakes up with credentials that are over.
        source.now_s += 3_700
        assert key(credentials) is None
        assert (await credentials.renewed()).access_key == "key1"
        assert key(credentials) == "key1"
        source.now_s += 3_700
        source.fails = True
        assert key(credentials) is None
        with pytest.raises(CredentialRetrievalError):
            await credentials.renewed()

    play(scenario)
