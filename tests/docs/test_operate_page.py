"""What the page on operation says of limits, metrics and alarms is what the code and the templates have.

Owns the comparison of names and numbers. Does not own the page's advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, get_args

import pytest

from tenuto.protocol import ids, limits
from tenuto.runtime import activation, state
from tenuto_control.admin import deployments
from tenuto_control.core import manifests, routing, verdicts
from tenuto_control.core.metrics import WRITES_PER_EVENT, CountName, SampleName
from tenuto_control.drivers import http_protocol
from tenuto_control.ingress import delays, requests
from tenuto_control.limits import MIB, Limits
from tests.tidy import tree

PAGE: Final = (tree.ROOT / "docs/guides/operate.md").read_text("utf-8")
MODULES: Final = (
    ids,
    limits,
    activation,
    state,
    deployments,
    manifests,
    routing,
    delays,
    http_protocol,
    requests,
    verdicts,
)
TOLD: Final[Mapping[str, int]] = {
    "DELAY_MS_MAX": 365 * 86_400_000,
    "FUNCTION_TIMEOUT_MS_MIN": 1_500,
    "LANE_TTL_S": 86_400,
    "PAUSE_MS_MAX": 365 * 86_400_000,
    "RESULT_TTL_S": 86_400,
    "TOMBSTONE_TTL_S": 86_400,
    "http_wait_ms_max": 25_000,
    "invoke_retry_max_ms": 10_000,
    "partition_bytes_max": 16 * MIB,
    "process_bytes_max": 48 * MIB,
    "lanes_at_work_bytes_max": 64 * MIB,
    "lane_cache_bytes_max": 32 * MIB,
    "invoke_bytes_max": 16 * MIB,
    "answers_bytes_max": 12 * MIB,
    "wheel_bytes_max": 16 * MIB,
    "batch_inflated_bytes_max": 16 * MIB,
    "batch_bytes_max": MIB,
    "drain_timeout_ms": 5_000,
    "session_timeout_ms": 10_000,
    "spill_after_ms": 5_000,
    "topic_patience_ms": 60_000,
    "table_refused_retry_max_ms": 60_000,
    "sweep_lookback_ms": 600_000,
}
"""What the page says in words or other units."""


def value(name: str) -> Any:
    """A limit by its name; those of `[limits]` are written in small letters."""
    if name.islower():
        return getattr(Limits(), name)
    return next(getattr(module, name) for module in MODULES if hasattr(module, name))


def limit_rows() -> list[tuple[str, str]]:
    """Limit and first constant of each row of the table of limits."""
    table = PAGE.partition("\n## Limits\n")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return [(row[1], row[2].split("`")[1]) for row in rows[2:]]


def test_the_table_of_limits_is_right() -> None:
    rows = limit_rows()
    assert rows
    told = {
        name: TOLD[name] if name in TOLD else int(limit.split(maxsplit=1)[0].replace(",", "")) for limit, name in rows
    }
    assert {name: value(name) for name in told} == told


@pytest.mark.parametrize("name", TOLD)
def test_what_is_said_in_words_is_still_so(name: str) -> None:
    assert f"`{name}`" in PAGE
    assert value(name) == TOLD[name]


@pytest.mark.parametrize(("name", "number"), re.findall(r"`([a-z_]+_max)` \(([\d,]+)\)", PAGE))
def test_a_number_in_the_text_is_the_default(name: str, number: str) -> None:
    assert value(name) == int(number.replace(",", ""))


def test_every_metric_and_alarm_is_on_the_page() -> None:
    for name in (*get_args(CountName), *get_args(SampleName), WRITES_PER_EVENT):
        assert f"`{name}`" in PAGE
    template = (tree.ROOT / "infra/observability.yaml").read_text("utf-8")
    alarms = re.findall(r'AlarmName: !Sub "\$\{Name\}-([a-z-]+)"', template)
    assert alarms
    assert [alarm for alarm in alarms if f"`tenuto-{alarm}`" not in PAGE] == []
