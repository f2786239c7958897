"""What a handler returned, as it is stored, and what is said of a value that cannot be.

Owns the words and the place in them: the handler has returned, so no traceback shows one. Does not own writing values
(`tenuto.serde`) nor what a refused result leads to (`activation`).
"""

from __future__ import annotations

from typing import Any

from tenuto.errors import UnserialisableError
from tenuto.runtime.handlers import HandlerSpec
from tenuto.runtime.lines import line_of
from tenuto.runtime.unawaited import refuse_unawaited


def encoded(spec: HandlerSpec, value: Any) -> bytes | None:
    """A handler's result as bytes; None for None.

    Raises TypeError for what should have been awaited, a mistake that a corrected deployment heals, and
    UnserialisableError for any other value that the handler's hint does not admit.
    """
    if value is None:
        return None
    try:
        return spec.output.serialize(value)
    except UnserialisableError as e:
        what, line = f"the result of {spec.target}", line_of(spec.call)
        refuse_unawaited(value, what if line is None else f"{what} ({line})", "return ")
        raise e.naming(what) from None
