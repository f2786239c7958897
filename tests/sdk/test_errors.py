"""The error types: their tree, their wording, and that they survive pickle and copy."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from datetime import timedelta

import pytest

from tenuto import errors
from tenuto.errors import (
    BadInputError,
    FencedError,
    JournalMismatchError,
    ProtocolError,
    RetryableError,
    StateTooLargeError,
    Suspension,
    TenutoError,
    TerminalError,
    UnserialisableError,
)

SAMPLES: list[TenutoError] = [
    TerminalError("user not found", status_code=404, metadata={"user": "u1"}),
    BadInputError("User", "missing", at="$.name"),
    UnserialisableError("object", "it has no JSON form", what="state 'user'"),
    StateTooLargeError("state 'user'", size_bytes=421_334, limit_bytes=400_000),
    RetryableError("busy", retry_after=timedelta(seconds=3)),
    JournalMismatchError(index=2, journaled="run 'pay'", replayed="sleep"),
    ProtocolError("unknown command"),
    FencedError("profile/k1"),
]


def test_the_docstring_shows_the_real_tree() -> None:
    shown = set(re.findall(r"^ {4,}(\w+)", errors.__doc__ or "", re.MULTILINE))
    assert shown - {"BaseException", "Exception"} == set(errors.__all__)


@pytest.mark.parametrize(
    ("error", "status"), [(SAMPLES[0], 404), (SAMPLES[1], 400), (SAMPLES[2], 500), (SAMPLES[3], 413)]
)
def test_terminal_errors_carry_their_status(error: TenutoError, status: int) -> None:
    assert isinstance(error, TerminalError)
    assert error.status_code == status


def test_a_terminal_error_has_a_plain_message_and_its_own_metadata() -> None:
    metadata = {"user": "u1"}
    error = TerminalError("user not found", metadata=metadata)
    metadata["user"] = "changed"
    assert (str(error), error.message, error.status_code) == ("user not found", "user not found", 500)
    assert error.metadata == {"user": "u1"}


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickle_and_copy(error: TenutoError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert (str(twin), vars(twin)) == (str(error), vars(error))


def test_bad_input_names_handler_type_and_place() -> None:
    error = BadInputError("User", "Expected `int`, got `str`", at="$.age").naming("the input of profile/user_event")
    assert str(error) == ("the input of profile/user_event is not a valid User: Expected `int`, got `str` (at $.age)")


def test_unserialisable_names_what_was_written() -> None:
    error = UnserialisableError("object", "it has no JSON form").naming("the result of run 'pay'")
    assert str(error) == "the result of run 'pay' of type object cannot be serialised: it has no JSON form"


def test_state_too_large_gives_both_sizes() -> None:
    message = str(StateTooLargeError("state 'user'", 421_334, 400_000))
    assert "state 'user' is 421,334 bytes" in message
    assert "limit is 400,000 bytes" in message


def test_a_journal_mismatch_names_both_sides() -> None:
    message = str(JournalMismatchError(2, "run 'pay'", "sleep"))
    assert "command 2" in message
    assert "journal has run 'pay'" in message
    assert "now issued sleep" in message


def test_except_exception_does_not_swallow_a_suspension() -> None:
    def handler() -> None:
        try:
            raise Suspension  # noqa: TRY301 - as the runtime raises it inside a handler
        except Exception:  # noqa: BLE001 - the clause under test
            pytest.fail("a handler's except clause caught the suspension")

    with pytest.raises(Suspension):
        handler()
    assert not issubclass(Suspension, Exception)


def test_errors_need_only_the_standard_library() -> None:
    code = (
        "import sys; import tenuto.errors; "
        "print([m for m in ('msgspec', 'pydantic', 'boto3', 'botocore', 'asyncio') if m in sys.modules])"
    )
    spec = errors.__file__
    # Loaded by path: the package's own __init__ may import more.
    code = code.replace(
        "import tenuto.errors",
        "import importlib.util as u; "
        f"s = u.spec_from_file_location('e', {spec!r}); m = u.module_from_spec(s); s.loader.exec_module(m)",
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
