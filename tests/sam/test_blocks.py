"""The marks of the templates: every one is replaced, and nothing else is touched."""

from __future__ import annotations

import pytest

from tenuto_cli.sam.blocks import EXAMPLE, FUNCTION, TOPIC, MarkError, expanded

TEXT = """\
first
  # tenuto sam: each function
  name: NAME
    # tenuto sam: this example alone
    only: here
    # tenuto sam: end
  # tenuto sam: end
  # tenuto sam: lines
last
"""


def test_blocks_are_repeated_and_lines_are_put_in_with_their_indentation() -> None:
    made = expanded(
        TEXT,
        {FUNCTION: lambda block: [block.replace("NAME", name) for name in ("a", "b")]},
        {"lines": ["one: 1", "", "  two: 2"]},
    )
    inner = "    # tenuto sam: this example alone\n    only: here\n    # tenuto sam: end\n"
    assert made == f"first\n  name: a\n{inner}  name: b\n{inner}  one: 1\n\n    two: 2\nlast\n"


def test_a_block_may_vanish() -> None:
    assert expanded(TEXT, {FUNCTION: lambda _block: []}, {"lines": []}) == "first\nlast\n"


@pytest.mark.parametrize(
    "text",
    [
        "# tenuto sam: each function\nx\n",
        "# tenuto sam: each function\n# tenuto sam: this example alone\n# tenuto sam: end\n",
        "# tenuto sam: unheard of\n",
        "# tenuto sam: end\n",
    ],
)
def test_marks_that_do_not_fit_are_refused(text: str) -> None:
    with pytest.raises(MarkError):
        expanded(text, {word: lambda _block: () for word in (FUNCTION, TOPIC, EXAMPLE)}, {})
