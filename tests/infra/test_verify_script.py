"""The script that a person runs against an account, run here against an `aws` that only plays one.

Owns that the script is sound shell, asks what it says, and tells right from wrong. What AWS answers, only AWS can show.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.infra.tools import run_tool
from tests.tidy import tree

SCRIPT: Final = tree.ROOT / "infra" / "verify_on_aws.sh"
SCRIPT_SECONDS_MAX: Final = 120

# Answers as the AWS CLI prints them; the simulator decides by a plain reading of the policies, or allows everything.
PRETENDER: Final = """#!{python}
import os, sys
words = sys.argv[1:]
given = dict(zip(words[2::1], words[3::1]))
command = " ".join(words[:2])
permissive = os.environ.get("PRETEND") == "permissive"
resource = given.get("--logical-resource-id", "")
if command == "cloudformation describe-stack-resource":
    missing = resource == "KafkaSource" or (resource == "Dispatcher" and os.environ.get("PRETEND") == "always on")
    print("None" if missing else resource)
elif command == "cloudformation describe-stacks":
    key = given["--query"].split("'")[1]
    print({{"TableName": "table", "UserUpdatesArn": "arn:fn:user-updates:live",
            "DispatcherArn": "arn:fn:dispatcher:live"}}[key])
elif command == "dynamodb describe-table":
    print("arn:table")
elif command == "iam get-role":
    print("arn:role/" + given["--role-name"])
elif command == "lambda invoke":
    open(words[-1], "w").write('{{"services": [{{"name": "userUpdates"}}]}}')
    print("None")
elif command == "iam simulate-principal-policy":
    role, action, where = (given[o] for o in ("--policy-source-arn", "--action-names", "--resource-arns"))
    context = given.get("--context-entries", "").rpartition("ContextKeyValues=")[2]
    action = action.split(":")[1]
    if role.endswith("UserUpdatesRole"):
        own = context.startswith("userUpdates/") and action in ("GetItem", "PutItem", "UpdateItem", "BatchWriteItem")
        fine = own or (context.startswith("T#") and action == "PutItem")
    elif role.endswith("SchedulerRole"):
        fine = where == "arn:fn:dispatcher:live"
    else:
        fine = (
            action == "Query"
            or (action == "InvokeFunction" and where.endswith(":live"))
            or (action == "PassRole" and where.endswith("SchedulerRole") and context == "scheduler.amazonaws.com")
        )
    print("allowed" if fine or permissive else "implicitDeny")
else:
    sys.exit("not played: " + command)
"""


def verify(tmp_path: Path, pretend: str) -> subprocess.CompletedProcess[str]:
    """Run the script with the pretender first on PATH."""
    pretender = tmp_path / "aws"
    pretender.write_text(PRETENDER.format(python=sys.executable))
    pretender.chmod(pretender.stat().st_mode | stat.S_IXUSR)
    jq = tmp_path / "jq"
    jq.write_text("#!/bin/sh\necho userUpdates\n")
    jq.chmod(jq.stat().st_mode | stat.S_IXUSR)
    return subprocess.run(
        [str(SCRIPT), "--schedules", "0"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PRETEND": pretend},
        capture_output=True,
        check=False,
        text=True,
        timeout=SCRIPT_SECONDS_MAX,
    )


def results(answer: subprocess.CompletedProcess[str]) -> dict[str, set[str]]:
    """The checks by their result."""
    found: dict[str, set[str]] = {"passed": set(), "failed": set(), "skipped": set()}
    for line in answer.stdout.splitlines()[1:]:
        found[line[70:78].strip()].add(line[11:69].strip())
    return found


def test_the_scripts_are_sound_shell() -> None:
    scripts = [*(tree.ROOT / "tools").glob("*.sh"), SCRIPT, tree.ROOT / ".ci" / "run"]
    answer = run_tool("shellcheck", *map(str, scripts))
    assert answer.returncode == 0, answer.stdout


def test_help_needs_nothing() -> None:
    answer = subprocess.run(
        [str(SCRIPT), "--help"], capture_output=True, check=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert answer.stdout.startswith("Usage:")


def test_a_deployment_as_it_should_be(tmp_path: Path) -> None:
    answer = verify(tmp_path, "sound")
    assert (answer.returncode, answer.stderr) == (0, "")
    found = results(answer)
    assert found["failed"] == set()
    assert found["skipped"] == {"event source mapping", "one-time schedules"}
    assert "a handler's GetItem of a result" in found["passed"]


def test_a_role_that_may_too_much_is_seen(tmp_path: Path) -> None:
    answer = verify(tmp_path, "permissive")
    assert answer.returncode == 1
    failed = results(answer)["failed"]
    assert "a handler's Scan on its own lane" in failed
    assert "the dispatcher invokes a handler past its alias" in failed
    assert "the dispatcher passes its own role" in failed


@pytest.mark.parametrize("pretend", ["always on"])
def test_always_on_has_less_to_check(tmp_path: Path, pretend: str) -> None:
    answer = verify(tmp_path, pretend)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "wake-ups and mapping" in results(answer)["skipped"]
