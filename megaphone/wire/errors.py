"""The table of errors: the HTTP status and the gRPC status of each code.

Both faces use it. Clients rebuild an error from its code, never from its text.
"""

import math
from dataclasses import dataclass

from megaphone import errors
from megaphone.errors import MegaphoneError

DOMAIN = "megaphone"
"""The domain of `google.rpc.ErrorInfo`."""
BEARER = 'Bearer realm="megaphone"'
SCOPE_PREFIX = "megaphone:"
"""The scope of a token that allows an action is this and the name of the action."""
INTERNAL_CODE = "INTERNAL_SERVER_ERROR"
INTERNAL_MESSAGE = "something went wrong inside the broker; its log says what"


@dataclass(frozen=True, slots=True)
class Row:
    error: type[MegaphoneError]
    http_status: int
    grpc_status: str
    """The name of a member of `grpc.StatusCode`."""


TABLE = (
    Row(errors.BadRequest, 400, "INVALID_ARGUMENT"),
    Row(errors.Unauthenticated, 401, "UNAUTHENTICATED"),
    Row(errors.TokenExpired, 401, "UNAUTHENTICATED"),
    Row(errors.PermissionDenied, 403, "PERMISSION_DENIED"),
    Row(errors.ChannelNotFound, 404, "NOT_FOUND"),
    Row(errors.AgentNotFound, 404, "NOT_FOUND"),
    Row(errors.TooSlow, 408, "ABORTED"),
    Row(errors.ReaderBusy, 409, "ABORTED"),
    Row(errors.TakenOver, 409, "ABORTED"),
    Row(errors.WrongMode, 409, "FAILED_PRECONDITION"),
    Row(errors.PayloadTooLarge, 413, "RESOURCE_EXHAUSTED"),
    Row(errors.UnsupportedMediaType, 415, "INVALID_ARGUMENT"),
    Row(errors.AgentMoved, 421, "UNAVAILABLE"),
    Row(errors.LimitExceeded, 429, "RESOURCE_EXHAUSTED"),
    Row(errors.RateLimited, 429, "RESOURCE_EXHAUSTED"),
    Row(errors.WriteTimeout, 503, "UNAVAILABLE"),
    Row(errors.NoAgentAvailable, 503, "UNAVAILABLE"),
    Row(errors.ShuttingDown, 503, "UNAVAILABLE"),
    Row(errors.StoreUnavailable, 503, "UNAVAILABLE"),
    Row(errors.KeysUnavailable, 503, "UNAVAILABLE"),
    Row(errors.TargetUnavailable, 503, "UNAVAILABLE"),
)

INTERNAL_HTTP_STATUS = 500
INTERNAL_GRPC_STATUS = "INTERNAL"

_BY_CODE = {row.error.code: row for row in TABLE}


def row_of(error: MegaphoneError) -> Row:
    return _BY_CODE[error.code]


def challenge_of(error: MegaphoneError) -> str | None:
    """Return the value of `WWW-Authenticate` beside an error, as RFC 6750 has it; None if there is
    none. HTTP requires it beside the status 401."""
    match error:
        case errors.NodeUnauthenticated():
            return "Megaphone-Node"
        case errors.Unauthenticated(was_presented=False):
            return BEARER
        case errors.Unauthenticated() | errors.TokenExpired():
            return f'{BEARER}, error="invalid_token"'
        case errors.PermissionDenied(action=str(action)):
            return f'{BEARER}, error="insufficient_scope", scope="{SCOPE_PREFIX}{action}"'
        case _:
            return None


def limit_of(error: MegaphoneError) -> str | None:
    """Return the name of the limit of a tenant, or of one address, that an error reports; None if
    it reports none."""
    return error.limit if isinstance(error, errors.LimitExceeded | errors.RateLimited) else None


def limit_headers(error: MegaphoneError) -> dict[str, str]:
    """Return the headers `RateLimit` and `RateLimit-Policy` beside an error, which say what a
    client may do and when it may do more; none if it reports no limit with a number."""
    match error:
        case errors.RateLimited(limit=str(limit), per_s=float() | int() as per_s):
            window_s = 1 if per_s >= 1 else math.ceil(1 / per_s)
            policy = f'"{limit}";q={max(1, int(per_s))};w={window_s}'
        case errors.LimitExceeded(limit=str(limit), most=int(most)):
            policy = f'"{limit}";q={most}'
        case _:
            return {}
    return {
        "RateLimit": f'"{limit}";r=0;t={whole_seconds(error.retry_after_s)}',
        "RateLimit-Policy": policy,
    }


def whole_seconds(retry_after_s: float | None) -> int:
    """Return the value of `Retry-After`, which knows only whole seconds: at least 1."""
    return max(1, math.ceil(retry_after_s or 0))


def error_from(code: str, message: str) -> MegaphoneError | None:
    """Return the error that a broker sent; None if the code is unknown."""
    row = _BY_CODE.get(code)
    return None if row is None else row.error(message)
