"""What the clients of buckets and hubs mean when they refuse, in words that say what to do."""

import contextlib
from collections.abc import Iterator
from typing import Any

from logitbank.stores.format.address import shown
from logitbank.stores.format.schema import StoreError

_EXPIRED = "the credentials have expired; log in again, or set a new token"
_UNKNOWN_KEY = "the credentials are not accepted; check the key and its secret"
_ELSEWHERE = (
    "the bucket is in another region or at another endpoint; set AWS_DEFAULT_REGION or AWS_ENDPOINT_URL to its own"
)
_DENIED = "access is refused; check that these credentials may use this address"
_NO_CREDENTIALS = "no credentials were found; log in, or set the variables of the client"
_SAID = {
    "NoSuchBucket": "there is no such bucket; check its name, or make it first",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": _UNKNOWN_KEY,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": _UNKNOWN_KEY,
    "PermanentRedirect": _ELSEWHERE,
    "TemporaryRedirect": _ELSEWHERE,
    "Redirect": _ELSEWHERE,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "IllegalLocationConstraintException": _ELSEWHERE,
    "301": _ELSEWHERE,
    "307": _ELSEWHERE,
    "308": _ELSEWHERE,
    "401": _UNKNOWN_KEY,
    "403": _DENIED,
    "AccessDenied": _DENIED,
}


class Refused(StoreError):
    """A place will not let us in; asking again does not help."""


@contextlib.contextmanager
def client_errors(name: str) -> Iterator[None]:
    """Turn whatever a client raises into a refusal, or into an OSError that can be tried again.

    What is not there stays FileNotFoundError.

    Args:
        name: The place, as people may see it.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        what = _meaning(error)
        if what is not None:
            raise Refused(f"{name}: {what}") from error
        if isinstance(error, FileNotFoundError):
            raise
        said = " ".join(str(error).split())[:300]
        raise OSError(f"{name}: {type(error).__name__}: {said}") from error


def _meaning(error: BaseException) -> str | None:
    """What a client's error says, when it is one that does not go away."""
    seen: BaseException | None = error
    while seen is not None:
        code = _code(seen)
        if code in _SAID:
            return f"{_SAID[code]} ({code})"
        if "Credential" in type(seen).__name__:
            return f"{_NO_CREDENTIALS} ({type(seen).__name__})"
        seen = seen.__cause__
    return f"{_DENIED} ({' '.join(str(error).split())[:200]})" if isinstance(error, PermissionError) else None


def _code(error: BaseException) -> str | None:
    """The code of an answer of S3, of the Hub or of Google's client."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code"))
    status = getattr(response, "status_code", None) or getattr(error, "code", None)
    return None if status is None else str(status)


def check_address(url: str) -> None:
    """Raise StoreError when an address of a bucket holds a password, which its client would not use."""
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise StoreError(f"{shown(url)}: credentials are not read from an address; set the client's own variables")
