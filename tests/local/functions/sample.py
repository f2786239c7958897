"""A Lambda function that does as its event says: return, raise, die, sleep, fork, or tell about itself."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def handler(event: dict[str, Any], context: Any) -> Any:
    match event.get("do"):
        case "raise":
            raise ValueError("no such order")
        case "exit":
            os._exit(event["status"])
        case "sleep":
            time.sleep(event["seconds"])
            return "slept"
        case "large":
            return "x" * event["bytes"]
        case "count":
            with Path(event["file"]).open("a") as file:
                file.write(f"{time.time()}\n")
            if event.get("fail"):
                raise RuntimeError("asked to fail")
            return None
        case "fork":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            return {"pid": os.getpid(), "child": child.pid}
        case "describe":
            return {
                "pid": os.getpid(),
                "request_id": context.aws_request_id,
                "arn": context.invoked_function_arn,
                "name": context.function_name,
                "remaining_ms": context.get_remaining_time_in_millis(),
                "client": context.client_context and context.client_context.custom,
                "endpoint": os.environ["AWS_ENDPOINT_URL_DYNAMODB"],
                "colour": os.environ.get("COLOUR"),
                "directory": str(Path.cwd()),
            }
        case _:
            return event
