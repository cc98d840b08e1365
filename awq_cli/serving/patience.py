"""How long the server waits for a request to begin: connections that say nothing take what others need."""

from typing import Any

BUSY = object()


def patient_protocol(seconds: float) -> type:
    """uvicorn's protocol for HTTP/1.1, which closes connections on which no request has begun for `seconds` to twice
    as many. Of itself it waits for ever before the first one, and in the middle of its head.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Patient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look_again()

        def connection_lost(self, error: Exception | None) -> None:
            self._looking.cancel()
            super().connection_lost(error)

        def _look(self, idle_after: Any) -> None:
            """idle_after: the request after which there was none, when it was looked before."""
            if self._idle_after() is idle_after is not BUSY:
                self.transport.close()
            else:
                self._look_again()

        def _look_again(self) -> None:
            self._looking = self.loop.call_later(seconds, self._look, self._idle_after())

        def _idle_after(self) -> Any:
            return self.cycle if self.cycle is None or self.cycle.response_complete else BUSY

    return Patient
