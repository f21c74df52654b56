"""What handlers read of a request besides its body."""

from urllib.parse import unquote_to_bytes

from aiohttp import web

from megaphone.errors import BadRequest
from megaphone.rest.answers import JSON


def path_values(request: web.Request) -> list[str]:
    """Return the variable parts of the path, percent-decoded once.

    aiohttp's own decoding keeps `%80` as it is, so that two paths could mean the same text.

    Raises: BadRequest, when they are not UTF-8.
    """
    return [decoded(part) for part in request.rel_url.raw_path.split("/")[2:]]


def decoded(part: str) -> str:
    if "%" not in part:
        return part
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise BadRequest("the path is not percent-encoded UTF-8") from None


def is_json(request: web.Request) -> bool:
    content_type = request.headers.get("Content-Type", "")
    if content_type == JSON:
        return True
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))


def require_json(request: web.Request) -> None:
    if not is_json(request):
        raise BadRequest(f"the Content-Type must be {JSON}")


def whole_number(name: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise BadRequest(f"`{name}` must be a whole number")
    return int(text)
