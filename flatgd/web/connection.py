"""HTTP connections with a limit in number and in time, so that idle ones cannot block the server.

uvicorn closes a connection that is idle between two requests, but waits for ever for a request that
never ends, and answers 503 to everyone once it has `limit_concurrency` connections. A few hundred
connections that send nothing would therefore shut everybody out. Here, a request must arrive in
REQUEST_SECONDS, and above MAX_CONNECTIONS the connection that has waited longest is closed.
"""

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 256
REQUEST_SECONDS = 20.0  # for the head and the body of a request together


class LimitedConnection(H11Protocol):
    """uvicorn's HTTP/1.1 connection, with the limits above.

    A connection waits while its request is not complete, and while its client does not read the
    response.
    """

    _timer: asyncio.TimerHandle | None = None
    _since = 0.0  # the loop's time when it began to wait

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._update_timer()
        connections = cast("set[LimitedConnection]", self.connections)
        open_ones = [one for one in connections if not one.transport.is_closing()]
        if len(open_ones) > MAX_CONNECTIONS:
            waiting = [one for one in open_ones if one.is_waiting]
            min(waiting, key=lambda one: one._since).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._update_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Whether the server waits for the client."""
        cycle = self.cycle
        is_busy = cycle is not None and not cycle.more_body and not cycle.response_complete
        return not is_busy or self.flow.write_paused

    def _update_timer(self) -> None:
        """Start the timer when the connection begins to wait, and stop it when it no longer does.
        Single bytes of a slow request do not restart it."""
        if not self.is_waiting or self.transport.is_closing():
            self._stop_timer()
        elif self._timer is None:
            self._since = self.loop.time()
            self._timer = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
