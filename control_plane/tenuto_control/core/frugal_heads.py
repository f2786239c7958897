"""Heads of lanes that rest, in less room than as they were parsed.

Owns what is left out, or shared by thousands of them. Does not own how a head is kept while its lane is idle
(`dispatcher.heads`).
"""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from tenuto.protocol.messages import Head


class _Nothing(dict[str, Any]):
    """An empty part of a head, which is never changed."""

    __slots__ = ()

    def __setitem__(self, name: str, value: object) -> None:
        raise TypeError("what a head holds is not changed in place")


_NOTHING: Final = _Nothing()


def frugal(head: Head) -> Head:
    """The same head, its empty parts shared with others: each would be a dictionary of its own, of 64 bytes.

    The copy of an event lacks what was found out about it, such as its id as a value: 400 bytes.
    """
    run = head.run
    return replace(
        head,
        state=head.state or _NOTHING,
        base=head.base or _NOTHING,
        watermarks=head.watermarks or _NOTHING,
        out=head.out or _NOTHING,
        fin=head.fin or _NOTHING,
        run=None if run is None else replace(run, event=replace(run.event)),
        slots=head.slots or _NOTHING,
        former=head.former or _NOTHING,
    )
