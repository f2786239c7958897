"""How values become bytes and come back: inputs, outputs, state and results of runs.

`serde_for(hint)` picks a serde by type hint, `hints_of(handler)` reads the hints off a handler:

    bytes, bytes | None                     BytesSerde      as they are
    none given, None, Any, object           JsonSerde       plain JSON
    pydantic models and what contains them  PydanticSerde   JSON by pydantic's rules
    all that msgspec knows                  TypedSerde      JSON by msgspec's rules: Struct, dataclass,
                                                            TypedDict, Enum, datetime, UUID, containers

**Nothing is lost.** What is read back by the same hint equals what was written, or the write raises
UnserialisableError. Each serde reads what it wrote and compares (`tenuto.serde.sameness`), unless the types alone
prove it: for plain JSON, text, int and bool. So a check of the type (`__post_init__`, a validator) also runs once at
the write. Refused are, for instance, a subclass where the hint names its base, fields that a model excludes or a
check changes, keys that a TypedDict does not have, tuples, sets and keys other than text under Any, NaN, and the zone
of a datetime: JSON has offsets of whole minutes and no zones. UTC and fixed offsets work.

Two writers have no hint of the reader to compare with:

    OwnTypesSerde    state and answers to awakeables: each value must come back by its own class, which is what
                     the reader gives as hint. Plain containers in it must be plain JSON.
    OutboundSerde    published records and results of handlers that declare none: JSON for others than tenuto,
                     written by each value's own type, where a tuple is a list and a key is text.

Encoding is deterministic: equal values give equal bytes in every process, whatever the order of a dict's
keys or the hash order of a set. (One exception: a set inside a pydantic model is written in the order in
which the model dumps it.) So object keys come back sorted.

This package does not own what a missing value means (an empty body, a Kafka tombstone): callers decide that
before they decode. Pydantic is never imported here unless a hint or a value comes from it, which means it
is loaded already.
"""

from tenuto.serde.hints import MISSING, hints_of
from tenuto.serde.serdes import (
    BytesSerde,
    JsonSerde,
    OutboundSerde,
    OwnTypesSerde,
    PydanticSerde,
    Serde,
    TypedSerde,
    output_serde_for,
    serde_for,
)
from tenuto.serde.text import problem_of

__all__ = [
    "MISSING",
    "BytesSerde",
    "JsonSerde",
    "OutboundSerde",
    "OwnTypesSerde",
    "PydanticSerde",
    "Serde",
    "TypedSerde",
    "hints_of",
    "output_serde_for",
    "problem_of",
    "serde_for",
]
