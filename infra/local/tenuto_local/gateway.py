"""One endpoint for every AWS service of the stack: `AWS_ENDPOINT_URL` set to it is all a client needs.

Owns the process that Lambda, Scheduler and the proxy to DynamoDB live in, the check of signatures, and the routing of
requests by the service they are signed for. Under `/_tenuto/` it answers the stack that started it, which knows the
secret of this start:

    GET  /_tenuto/functions   functions, their workers (pid, state, request id), invocations, cold starts
    POST /_tenuto/functions   register one function or an array of them (`FunctionSpec` as JSON)
    POST /_tenuto/hold        start no further workers of the function that the body names, until it is registered again
    GET  /_tenuto/dynamodb    requests that went to DynamoDB through this endpoint, by operation

Run as `python -m tenuto_local.gateway --port 18080 --dynamodb http://127.0.0.1:8000 --functions functions.json`, with
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY that clients have to sign with, and TENUTO_GATEWAY_SECRET, which opens
`/_tenuto/`: a web page or another user of the machine knows neither. A function runs as whoever started the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenuto_control.arguments import Parser, whole
from tenuto_control.core.settings import PORT_MAX
from tenuto_local.aws_api import (
    ACCESS_KEY_VARIABLE,
    ACCOUNT_ID,
    SECRET_KEY_VARIABLE,
    AwsError,
    credentials,
    region,
)
from tenuto_local.dynamodb_proxy import DynamoDBProxy
from tenuto_local.errors import ConfigurationError
from tenuto_local.gateway_contract import (
    ADMIN_DYNAMODB,
    ADMIN_FUNCTIONS,
    ADMIN_HEADER,
    ADMIN_HOLD,
    ADMIN_VARIABLE,
    READY_MARKER,
)
from tenuto_local.http_server import HttpServer, Request, Responder
from tenuto_local.lambda_service import LambdaService
from tenuto_local.lambda_service.function_spec import FunctionSpec, decode_function_specs
from tenuto_local.ports import LOOPBACK
from tenuto_local.scheduler_service import SchedulerService
from tenuto_local.signatures import claim_of, proven


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How to run a gateway; `dynamodb_url` is handed to functions as their DynamoDB endpoint.

    `credentials` are what requests have to be signed with, as AWS's variables; functions get them. `secret` opens the
    admin paths; functions do not get it.
    """

    port: int
    dynamodb_url: str
    functions: tuple[FunctionSpec, ...]
    log_directory: Path
    credentials: Mapping[str, str]
    secret: str


class Gateway:
    """The services, and the router before them."""

    def __init__(self, options: GatewayOptions) -> None:
        environment = {
            **options.credentials,
            "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{options.port}",
            "AWS_ENDPOINT_URL_DYNAMODB": options.dynamodb_url,
        }
        self._options = options
        self._lambda = LambdaService(environment, options.log_directory)
        self._scheduler = SchedulerService(self._lambda.invoke_event)
        self._dynamodb = DynamoDBProxy(options.dynamodb_url)
        self._server = HttpServer(self._handle)
        self._routes = {
            "lambda": self._lambda.handle,
            "scheduler": self._scheduler.handle,
            "dynamodb": self._dynamodb.handle,
            "sts": _handle_sts,
        }

    async def start(self) -> None:
        """Register the functions and listen; raises `ConfigurationError` when the port is taken."""
        for spec in self._options.functions:
            self._lambda.register(spec)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, self._options.port))
        except OSError as error:
            sock.close()
            raise ConfigurationError(f"port {self._options.port} cannot be used: {error.strerror}") from error
        await self._server.start(sock)

    async def close(self) -> None:
        """Stop listening and end every worker."""
        self._server.close()
        self._scheduler.close()
        await self._dynamodb.close()
        await self._lambda.close()

    def _handle(self, request: Request, responder: Responder) -> None:
        try:
            if request.path in (ADMIN_FUNCTIONS, ADMIN_DYNAMODB, ADMIN_HOLD):
                self._check_secret(request)
                self._handle_admin(request, responder)
            else:
                self._routes[self._signed_service(request)](request, responder)
        except AwsError as error:
            error.send(responder)

    def _check_secret(self, request: Request) -> None:
        """Raises `AwsError` for whoever does not know the secret of this start."""
        given = request.headers.get(ADMIN_HEADER, "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, self._options.secret.encode()):
            text = f"The stack that started this gateway manages it, by the secret in the header {ADMIN_HEADER}."
            raise AwsError(403, "AccessDenied", text)

    def _signed_service(self, request: Request) -> str:
        """The service a request is signed for, such as `lambda`. Raises `AwsError` when nobody serves or signed it."""
        claim = claim_of(request)
        if claim is None:
            raise AwsError(403, "MissingAuthenticationToken", "The request is not signed for a service.")
        own = self._options.credentials
        if not proven(request, claim, own[ACCESS_KEY_VARIABLE], own[SECRET_KEY_VARIABLE]):
            raise AwsError(
                403,
                "InvalidSignatureException",
                "The request is not signed with the credentials of this stack, which are created at each start; "
                "a stack passes them to the processes it starts and writes them to the file aws.env in its directory.",
            )
        if claim.service not in self._routes:
            text = f"The local stack has no service {claim.service!r}; it has {', '.join(sorted(self._routes))}."
            raise AwsError(501, "NotImplemented", text)
        return claim.service

    def _handle_admin(self, request: Request, responder: Responder) -> None:
        if request.path == ADMIN_DYNAMODB:
            responder.send_json(200, {"requests": self._dynamodb.counts})
            return
        if request.method == "GET":
            responder.send_json(200, {"functions": self._lambda.describe()})
            return
        try:
            if request.path == ADMIN_HOLD:
                self._lambda.hold(request.body.decode(errors="replace"))
            else:
                for spec in decode_function_specs(request.body):
                    self._lambda.register(spec)
        except ConfigurationError as error:
            responder.send_json(400, {"message": str(error)})
        else:
            responder.send_json(200, {})


def _handle_sts(request: Request, responder: Responder) -> None:
    if b"Action=GetCallerIdentity" not in request.body:
        responder.send_json(501, {"message": "The local stack serves GetCallerIdentity only."})
        return
    arn = f"arn:aws:iam::{ACCOUNT_ID}:root"
    identity = f"<Arn>{arn}</Arn><UserId>{ACCOUNT_ID}</UserId><Account>{ACCOUNT_ID}</Account>"
    result = (
        '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
        f"<GetCallerIdentityResult>{identity}</GetCallerIdentityResult>"
        f"<ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId></ResponseMetadata>"
        "</GetCallerIdentityResponse>"
    )
    responder.send(200, [("Content-Type", "text/xml")], result.encode())


def _parse_arguments(argv: Sequence[str] | None) -> GatewayOptions:
    parser = Parser(prog="python -m tenuto_local.gateway", description="One local AWS endpoint.")
    parser.add_argument("--port", type=whole(1, PORT_MAX), required=True, help="loopback port to listen on")
    parser.add_argument("--dynamodb", required=True, metavar="URL", help="endpoint of DynamoDB Local")
    parser.add_argument("--functions", type=Path, metavar="FILE", help="JSON array of functions")
    parser.add_argument("--logs", type=Path, default=Path.cwd(), metavar="DIR", help="where functions log to")
    arguments = parser.parse_args(argv)
    try:
        functions = decode_function_specs(arguments.functions.read_bytes()) if arguments.functions else []
    except OSError as error:
        raise ConfigurationError(f"{arguments.functions} cannot be read: {error.strerror}") from error
    own, secret = credentials(), os.environ.pop(ADMIN_VARIABLE, "")
    if not secret or own[SECRET_KEY_VARIABLE] != os.environ.get(SECRET_KEY_VARIABLE):
        raise ConfigurationError(
            f"{ACCESS_KEY_VARIABLE}, {SECRET_KEY_VARIABLE} and {ADMIN_VARIABLE} must be set: without them, any "
            "local process could run code as you"
        )
    return GatewayOptions(arguments.port, arguments.dynamodb, tuple(functions), arguments.logs, own, secret)


async def _serve(options: GatewayOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gateway = Gateway(options)
    try:
        await gateway.start()
        print(f"{READY_MARKER} on {LOOPBACK}:{options.port} ({region()})", flush=True)
        await stop.wait()
    finally:
        await gateway.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or Ctrl-C; 0 after an orderly end, 2 (and one line of complaint) for a bad option."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        options = _parse_arguments(argv)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(options))
    except ConfigurationError as error:
        print(f"tenuto gateway: {error}", file=sys.stderr)
        return 2
    return 0


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    # Half the latency of an invocation is event loop; uvloop is used where it can be installed.
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.Loop
    return None


if __name__ == "__main__":
    sys.exit(main())
