"""What `tenuto dev` shows of logs: whole lines, the invocation they belong to, the user's own line, where to look next.

Owns the cutting of a log into lines and how they look. Does not own the processes that write it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenuto_local.dev.follow import READ_BYTES_MAX, Follower, complete
from tenuto_local.dev.lines import Frame, Line, Trouble, decoded, encoded, is_own, trouble_of
from tenuto_local.dev.view import View

RECORD = b"[WARNING]\t2026-11-29T12:00:00.000Z\tid\tfailed\n"
LAST = b"ValueError: no"
"""The end of a traceback, as Lambda's runtime client leaves it: without an end of line."""

ROOT = Path("/work/shop")
PLACE: Any = {"invocation_id": "inv_abc", "service": "orders", "key": "o-1", "handler": "place", "attempt": 2}


@pytest.mark.parametrize(
    ("data", "grown", "shown"),
    [
        (b"", False, 0),
        (RECORD, True, len(RECORD)),
        (RECORD + LAST, True, len(RECORD)),
        (LAST, True, 0),
        (LAST, False, len(LAST)),
        (b"x" * READ_BYTES_MAX, True, READ_BYTES_MAX),
    ],
)
def test_what_has_no_end_of_line_is_shown_once_it_grows_no_more(data: bytes, grown: bool, shown: int) -> None:
    assert complete(data, grown=grown) == shown


def test_a_log_is_followed_from_where_it_ends(tmp_path: Path) -> None:
    log = tmp_path / "f.log"
    log.write_bytes(RECORD)
    follower = Follower(log)
    assert list(follower.lines()) == []
    with log.open("ab") as file:
        file.write(b"one\ntwo\nthr")
    assert list(follower.lines()) == ["one", "two"]
    with log.open("ab") as file:
        file.write(b"ee\n")
    assert list(follower.lines()) == ["three"]
    assert list(follower.lines()) == []


def test_a_line_is_written_and_read() -> None:
    line = Line("hello", **PLACE, trouble=Trouble("ValueError", "no", (Frame("/work/shop/a.py", 3, "f", "x"),)))
    assert decoded(encoded(line).rstrip("\n")) == line
    assert decoded("hello") is None
    assert decoded("\x1ehello") is None


def test_output_names_its_invocation_key_and_attempt() -> None:
    (shown,) = View(ROOT).of_function("shop", encoded(Line("hello", **PLACE)), 0.0)
    assert shown.split(maxsplit=1)[1] == "orders/o-1 place #2 ~f50bc2  hello"
    (shown,) = View(ROOT).of_function("shop", "from a library", 0.0)
    assert shown.split(maxsplit=1)[1] == "shop  from a library"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("orders/place: attempt failed: ValueError: no", "save a fix"),
        ("orders/place: attempt failed: JournalMismatchError: at 2", "undo that change"),
        ("orders/place failed for good: TerminalError: no", "the handler's own decision"),
        (
            "orders/place is refused: BadInputError: the input of orders/place is not a valid int",
            "in TOPIC.dead-letter",
        ),
        ("orders/place is refused: InvalidArgumentError: ctx.publish: no topic", "a caller gets the error"),
        ("orders/o-1: place ends as failed: its function never answers", "the caller gets the error"),
        ("orders/o-1: place ended t/0 offset 3 by a terminal error (409): no", "counts as handled"),
        ('topic "gone" does not exist; its subscription waits until it is created', "add [topics.NAME] to tenuto.toml"),
        ("gone: the topic does not exist (UnknownTopic); create it", "add [topics.NAME] to tenuto.toml"),
        (
            'the record t/0 offset 3 for place ended as failed and is in "t.dead-letter": no',
            "tenuto tail TOPIC.dead-letter",
        ),
        ("place ended as failed (500) after 3 attempts, from HTTP; kept as dead letter x: no", "the guide Operate"),
    ],
)
def test_a_failure_shows_the_users_own_line_and_where_to_look(text: str, hint: str) -> None:
    trouble = Trouble("ValueError", "no", (Frame("/work/shop/src/shop/orders.py", 14, "price", "raise ValueError"),))
    view = View(ROOT)
    lines = list(view.of_function("shop", encoded(Line(text, "WARNING", "tenuto", **PLACE, trouble=trouble)), 0.0))
    assert lines[0].endswith(f"✗ {text.removeprefix('orders/o-1: ')}")
    assert lines[1].strip() == "src/shop/orders.py:14 in price   raise ValueError"
    assert hint in lines[2]
    assert "docs/" not in lines[2], "a project has no such folder"
    assert "inv_abc" in lines[2]
    again = list(view.of_function("shop", encoded(Line(text, "WARNING", "tenuto", **PLACE)), 0.0))
    assert len(again) == 1, "a hint is given once for each invocation"


PLANES = [
    "attempt at place failed: {}",
    "attempt at place failed, next in 1.0 s: {}",
    "attempt at place failed: {} (2 times)",
]


@pytest.mark.parametrize("plane", PLANES)
def test_a_failed_attempt_is_shown_once_as_its_function_tells_of_it(plane: str) -> None:
    def of_plane(error: str, invocation: str = "inv_abc") -> str:
        place = {**PLACE, "invocation_id": invocation}
        return json.dumps(
            {"level": "WARNING", "message": f"orders/o-1: {plane.format(error)}", "name": "tenuto", **place}
        )

    error = "ValueError: no (7 left)"
    line = Line(f"orders/place: attempt failed: {error}", "WARNING", "tenuto", **PLACE)
    view = View(ROOT)
    assert len(list(view.of_function("shop", encoded(line), 0.0))) == 2
    assert list(view.of_control_plane(of_plane(error), 0.0)) == []
    assert list(view.of_control_plane(of_plane("the function ended"), 0.0)) != [], "its function cannot tell of that"
    assert list(view.of_control_plane(of_plane(error, "inv_other"), 0.0)) != []
    whole = View(ROOT, verbose=True)
    assert len(list(whole.of_function("shop", encoded(line), 0.0))) == 2
    assert list(whole.of_control_plane(of_plane(error), 0.0)) != [], "all of its log was asked for"


def test_a_step_that_fails_for_good_is_the_handlers_to_catch() -> None:
    line = Line("step 'charge' failed for good", "WARNING", "tenuto", **PLACE)
    assert len(list(View(ROOT).of_function("shop", encoded(line), 0.0))) == 1


def test_ordinary_lines_of_the_control_plane_are_left_out() -> None:
    info = json.dumps({"level": "INFO", "message": "listening", "name": "tenuto"})
    loud = json.dumps({"level": "WARNING", "message": "orders/o-1: it fails", "name": "tenuto", **PLACE})
    assert list(View(ROOT).of_control_plane(info, 0.0)) == []
    assert len(list(View(ROOT, verbose=True).of_control_plane(info, 0.0))) == 1
    (shown,) = View(ROOT).of_control_plane(loud, 0.0)
    assert shown.endswith("~f50bc2  ✗ it fails")


def test_only_the_users_frames_are_kept(tmp_path: Path) -> None:
    module = tmp_path / "own.py"
    module.write_text("import json\n\ndef read(text):\n    return json.loads(text)\n", "utf-8")
    space: dict[str, object] = {}
    exec(compile(module.read_text("utf-8"), str(module), "exec"), space)
    with pytest.raises(ValueError, match="Expecting") as caught:
        space["read"]("nothing")  # type: ignore[operator]  # a function of the module above
    trouble = trouble_of(caught.value, [str(tmp_path)])
    assert [(frame.line, frame.function, frame.code) for frame in trouble.frames] == [
        (4, "read", "return json.loads(text)")
    ]


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("/work/shop/src/a.py", True),
        ("/work/shop/.venv/lib/python3.13/site-packages/x.py", False),
        ("/work/shop/venv/x.py", False),
        ("/work/shopping/a.py", False),
        ("/usr/lib/python3/json.py", False),
    ],
)
def test_what_is_installed_is_not_the_users(file: str, own: bool) -> None:
    assert is_own(file, ["/work/shop"]) is own


def test_notes_of_an_error_are_shown() -> None:
    error = ValueError("no")
    error.add_note('    issued at:\n  File "/lib/b.py", line 1\n    y = 1\n  File "/own/a.py", line 3\n    x = 1')
    trouble = trouble_of(error, ["/own"])
    assert trouble.notes == ("issued at:", 'File "/own/a.py", line 3', "x = 1")
    lines = list(View(ROOT).of_trouble("shop", trouble, "save a fix", 0.0))
    assert [line.strip() for line in lines[1:]] == [*trouble.notes, "→ save a fix"]
