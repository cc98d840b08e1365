"""What goes wrong with a request, in the shape that clients of OpenAI's API know."""

from dataclasses import dataclass
from typing import Any

from engine.batching import Closed, Full
from qlinear.errors import OptionError, one_line

GONE = 499  # as nginx has it, of a client that is not there any more; nobody sees it but the counts


@dataclass(frozen=True)
class Refusal(Exception):
    """status: of HTTP; parameter: of the request, that it is about; code: for programs to look at."""

    status: int
    message: str
    parameter: str | None = None
    code: str | None = None

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.parameter, "code": self.code}
        return {"error": error}


def refusal_of(error: Exception) -> Refusal:
    """What a client is told of whatever was raised: never where in this program."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Full):
        return Refusal(429, str(error), code="server_busy")
    if isinstance(error, Closed):
        return Refusal(503, "this server is about to end", code="server_ends")
    if isinstance(error, RecursionError):
        return Refusal(400, "the request is nested too deep", code="invalid_json")
    if isinstance(error, OptionError):
        return Refusal(400, str(error).replace("`", ""))
    return Refusal(500, f"the server failed: {one_line(error)}", code="server_failed")
