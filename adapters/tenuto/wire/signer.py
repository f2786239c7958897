"""Signed requests to one destination, as bytes.

Owns what is remembered between requests: the key of the day, the second's time in AWS's form, the heads that were begun
in that second, and by how much this machine's clock is wrong. Reads no clock itself.
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Final, TypeAlias

from tenuto.wire.destination import Destination
from tenuto.wire.http1 import encode_lines
from tenuto.wire.limits import SKEW_S_MIN
from tenuto.wire.sigv4 import Credentials, Request, SigningKey, Unsigned, signing_key, unsigned

SKEW_CODES: Final = frozenset(
    {
        "AuthFailure",
        "InvalidSignatureException",
        "RequestExpired",
        "RequestInTheFuture",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)
"""Error codes that a wrong clock may be behind. The request was refused as it came, and took no effect."""


HEADS_BEGUN_MAX: Final = 64
"""Heads of one second that are begun once. There are a few operations, unless each request names its own trace."""

Begun: TypeAlias = tuple[bytes, Unsigned, SigningKey]
"""The lines of a head up to the signature, and what makes that."""


class Signer:
    """Signs requests to one destination. Threads may share it. `skew_s` is what this machine's clock is wrong by."""

    def __init__(self, to: Destination) -> None:
        self._to = to
        # Each of these is read and replaced as a whole, so that threads never see halves of two.
        self._key: tuple[str, Credentials | None, SigningKey] = ("", None, SigningKey(b""))
        self._stamp: tuple[int, str] = (-1, "")
        self._begun: tuple[str, Credentials | None, dict[tuple[object, ...], Begun]] = ("", None, {})
        self.skew_s = 0

    def signed_head(self, request: Request, credentials: Credentials, at_s: float) -> bytes:
        """The head of a request, to be followed by its body. `at_s` is this machine's time, in seconds since 1970.

        Raises ValueError for headers that have the end of a line in them or are not ASCII.
        """
        stamp = self._stamp_at(int(at_s) + self.skew_s)
        known_stamp, known, begun = self._begun
        if known_stamp is not stamp or known is not credentials or len(begun) >= HEADS_BEGUN_MAX:
            begun = {}
            self._begun = (stamp, credentials, begun)
        alike = (request.method, request.path, request.query, *request.headers.items())
        found = begun.get(alike)
        if found is None:
            found = begun[alike] = self._begin(request, credentials, stamp)
        lines, common, key = found
        signature = common.signature(request.body, key)
        return b"%b%b\r\ncontent-length: %d\r\n\r\n" % (lines, signature.encode(), len(request.body))

    def _begin(self, request: Request, credentials: Credentials, stamp: str) -> Begun:
        """A head up to its signature. Raises ValueError as `signed_head` does."""
        to = self._to
        headers = {"host": to.authority, **request.headers, "x-amz-date": stamp}
        if credentials.token:
            headers["x-amz-security-token"] = credentials.token
        common = unsigned(request, headers, credentials.access_key, to.region, to.service)
        target = f"{request.path}?{request.query}" if request.query else request.path
        if to.proxy is not None and not to.tls:
            # A proxy takes plain HTTP by the whole URL. The signature is for the server, and has the path alone.
            target = f"http://{to.authority}{target}"
            if to.proxy.authorization is not None:
                headers["proxy-authorization"] = to.proxy.authorization
        # Last, for the signature follows.
        headers.pop("authorization", None)
        headers["authorization"] = common.authorization
        lines = encode_lines(request.method, target, headers).removesuffix(b"\r\n")
        return lines, common, self._key_for(credentials, stamp[:8])

    def learns(self, code: str, date: str | None, at_s: float, signed_skew_s: int) -> bool:
        """Whether an error is due to this machine's clock, which is corrected then: the same request may succeed now.

        `code` is the error's, `date` the answer's Date header, `at_s` this machine's time. `signed_skew_s` is `skew_s`
        from before the request: of several in progress, all are refused, and only the first finds it as it was.
        """
        if code not in SKEW_CODES or date is None:
            return False
        try:
            skew_s = int(parsedate_to_datetime(date).timestamp() - at_s)
        except (ValueError, OverflowError, TypeError):
            return False
        if abs(skew_s - signed_skew_s) < SKEW_S_MIN:
            return False
        self.skew_s = skew_s
        return True

    def _stamp_at(self, at_s: int) -> str:
        known_s, stamp = self._stamp
        if known_s != at_s:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at_s))
            self._stamp = (at_s, stamp)
        return stamp

    def _key_for(self, credentials: Credentials, day: str) -> SigningKey:
        known_day, known, key = self._key
        if known_day != day or (known is not credentials and known != credentials):
            key = SigningKey(signing_key(credentials.secret_key, day, self._to.region, self._to.service))
            self._key = (day, credentials, key)
        return key
