"""Names of topics. Owns which ones a broker can have at all; not which ones exist."""

from __future__ import annotations

import re

TOPIC_CHARACTERS_MAX = 249
"""Longest name of a topic (Apache Kafka, `Topic.MAX_NAME_LENGTH`)."""

_NAME = re.compile(r"[a-zA-Z0-9._-]+")


def topic_problem(topic: str) -> str | None:
    """Why no broker can have a topic of this name; None when one can. The text does not quote a long name whole."""
    if not topic:
        return "a topic needs a name"
    if len(topic) > TOPIC_CHARACTERS_MAX:
        return f"the name is {len(topic):,} characters long; a topic's has at most {TOPIC_CHARACTERS_MAX}"
    if topic in (".", "..") or not _NAME.fullmatch(topic):
        return f"{topic!r} is not a valid topic name; use the letters a to z and A to Z, digits, '.', '_' and '-'"
    return None
