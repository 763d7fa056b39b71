"""The one form of an error answer, and the error that a handler raises to give it."""

from collections.abc import Mapping

from aiohttp import web

from outbox.errors import OutboxError


class RefusedError(OutboxError):
    """A request that is answered with `status` and the message. `field`: what of the request is at fault."""

    def __init__(
        self, status: int, message: str, *, field: str = "request", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.errors = {field: [message]}
        self.headers = dict(headers or {})


def error_answer(
    status: int, errors: Mapping[str, list[str]], headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return the answer `{"errors": {field: [message, …]}}`."""
    return web.json_response({"errors": dict(errors)}, status=status, headers=headers)
