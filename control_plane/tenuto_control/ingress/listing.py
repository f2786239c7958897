"""Services as a caller sees them: finding the handler of a path, and the page that lists them all.

Owns the 404s and 400s that name what exists. Does not own discovery.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol

from tenuto.protocol.messages import HandlerManifest, InputForm, ServiceManifest
from tenuto_control.ingress.paths import Target, encode_segment
from tenuto_control.ingress.problems import RefusedError
from tenuto_control.ingress.requests import suggestion
from tenuto_control.ports import Targets

NAMES_SHOWN_MAX: Final = 20
"""Names an error message lists."""

BASE: Final = "$TENUTO_URL"
"""What lines to paste begin with where the control plane does not know its own address."""

_BODIES: Final[Mapping[InputForm, str]] = {
    "object": "--json '{}'",
    "array": "--json '[]'",
    "text": "--json '\"text\"'",
    "number": "--json 1",
    "boolean": "--json true",
    "bytes": "--data-binary bytes",
}
"""An input of each form, to begin with."""

EXAMPLE_KEY: Final = "my-key"


class Catalogue(Targets, Protocol):
    """The `Targets` port with a way to see all of them."""

    def listed(self) -> Sequence[ServiceManifest]:
        """Every service some deployment serves, in order of name."""
        ...


def find_handler(
    catalogue: Catalogue, target: Target, unanswered: Sequence[str] = ()
) -> tuple[ServiceManifest, HandlerManifest]:
    """The service and handler a path means. `unanswered` are functions of which it is not known what they serve.

    Raises RefusedError: 404 naming what exists, 503 when it may be one of the others, 400 for the key.
    """
    found = catalogue.find(target.service)
    if found is None and unanswered:
        raise RefusedError(
            f"the service {target.service!r} is not known, but {', '.join(unanswered)} did not answer when asked what "
            "they serve; nothing was accepted, try again",
            HTTPStatus.SERVICE_UNAVAILABLE,
        )
    if found is None:
        names = [service.name for service in catalogue.listed()]
        raise RefusedError(_no_such("service", target.service, names), HTTPStatus.NOT_FOUND)
    service = found.manifest
    if service.keyed and target.key is None:
        raise RefusedError(f"{service.name} is a virtual object: the path is {service.name}/{{key}}/{{handler}}")
    if not service.keyed and target.key is not None:
        raise RefusedError(f"{service.name} is a service without keys: the path is {service.name}/{{handler}}")
    for handler in service.handlers:
        if handler.name == target.handler:
            return service, handler
    names = [handler.name for handler in service.handlers]
    raise RefusedError(_no_such(f"handler of {service.name}", target.handler, names), HTTPStatus.NOT_FOUND)


def check_input(service: ServiceManifest, handler: HandlerManifest, body: bytes | None) -> None:
    """Raises RefusedError (400) for a body where none belongs, and for a missing one where one does.

    To a handler without input `null` says as much as no body: clients that encode whatever they have send it.
    """
    if body is not None and not handler.takes_input and body.strip() != b"null":
        raise no_input(service, handler)
    if body is None and handler.takes_input and not handler.nullable:
        name = f"{service.name}/{handler.name}"
        raise RefusedError(f"{name} takes an input, and its type does not admit null: send it as the body")


def no_input(service: ServiceManifest, handler: HandlerManifest) -> RefusedError:
    """What a caller is told who sends a body where none belongs."""
    return RefusedError(f"{service.name}/{handler.name} takes no input: send no body")


def as_json(services: Iterable[ServiceManifest], base: str) -> dict[str, Any]:
    """The listing as JSON: each handler with a line to paste."""
    return {
        "services": [
            {
                "name": service.name,
                "kind": "virtual object" if service.keyed else "service",
                "handlers": [
                    {"name": handler.name, "kind": handler.kind, "curl": _curl(service, handler, base)}
                    for handler in service.handlers
                ],
            }
            for service in services
        ]
    }


def as_text(services: Iterable[ServiceManifest], base: str) -> str:
    """The listing for a terminal."""
    lines: list[str] = []
    for service in services:
        lines.append(f"{service.name} ({'virtual object' if service.keyed else 'service'})")
        for handler in service.handlers:
            lines += [f"  {handler.name} ({handler.kind})", f"    {_curl(service, handler, base)}"]
    return "\n".join(lines or ["no services"]) + "\n"


def _curl(service: ServiceManifest, handler: HandlerManifest, base: str) -> str:
    key = [EXAMPLE_KEY] if service.keyed else []
    path = "/".join(encode_segment(part) for part in (service.name, *key, handler.name))
    url = f"{base}/call/{path}"
    # A variable is to be replaced, and all that follows it is percent-encoded.
    url = f'"{url}"' if base.startswith("$") else shlex.quote(url)
    return f"curl {url} {_BODIES[handler.input_form]}" if handler.takes_input else f"curl -X POST {url}"


def _no_such(what: str, name: str, known: Sequence[str]) -> str:
    shown = ", ".join(known[:NAMES_SHOWN_MAX]) + (", …" if len(known) > NAMES_SHOWN_MAX else "")
    return f"no {what} is called {name!r}{suggestion(name, known) or '.'} There is: {shown or 'none'}"
