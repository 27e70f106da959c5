"""Requests to a server over HTTP, bounded in total time and size, whatever the server sends.

A socket's timeout starts anew with every byte, so a server that sends one byte at a time could keep the client waiting
without end. Here a timer closes the connection. Redirects are not followed, and the environment's proxy is not used,
since the server runs on this machine or near it.
"""

import http.client
from contextlib import closing, suppress
from dataclasses import dataclass
from socket import SHUT_RDWR, socket
from threading import Event, Timer
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from g4convert.errors import UsageError
from g4convert.verification.engine.answers import MOST_ANSWER, OversizeError

_CONNECTIONS: Final = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


@dataclass(frozen=True, slots=True)
class Reply:
    """Reply of a server.

    Args:
        status: status code of HTTP.
        reason: the server's phrase for the status.
        body: content, at most `MOST_ANSWER` bytes.
    """

    status: int
    reason: str
    body: bytes


class Server:
    """A server; each request uses a new connection.

    Args:
        url: `http://HOST:PORT`, without a path.
        timeout: seconds that a request and its whole answer may take.

    Raises:
        UsageError: the URL is not of this form.
    """

    def __init__(self, url: str, timeout: float) -> None:
        wrong = UsageError(f"--engine-url {url}: expected http://HOST:PORT")
        try:
            parts = urlsplit(url)
            place = parts.hostname, parts.port
        except ValueError as error:
            raise wrong from error
        if parts.username is not None:
            raise UsageError(
                "--engine-url: has a user's name or password, which messages and reports would show",
                hint="expected http://HOST:PORT; a proxy on this machine can add them",
            )
        if parts.scheme not in _CONNECTIONS or not place[0]:
            raise wrong
        self.url = url.rstrip("/")
        self._host, self._port = place[0], place[1]
        self._connection = _CONNECTIONS[parts.scheme]
        self._prefix = parts.path.rstrip("/")
        self._timeout = timeout

    def ask(self, path: str, question: bytes | None = None) -> Reply:
        """Send a request, and read the reply.

        Args:
            path: path on the server.
            question: JSON to send by POST; None sends a GET.

        Raises:
            TimeoutError: the whole reply did not arrive in time.
            OversizeError: the reply is larger than `MOST_ANSWER`.
            OSError: no server listens, or it closed the connection early.
            HTTPException: the server does not speak HTTP.
        """
        connection = self._connection(self._host, self._port, timeout=self._timeout)
        with closing(connection), _Clock(connection, self._timeout) as clock:
            clock.connect()
            headers = {"Content-Type": "application/json"}
            connection.request("GET" if question is None else "POST", self._prefix + path, question, headers)
            reply = connection.getresponse()
            body = reply.read(MOST_ANSWER + 1)
            if len(body) > MOST_ANSWER:
                raise OversizeError
            if reply.length:
                raise ConnectionAbortedError(f"{reply.length} bytes of it are missing")
        return Reply(reply.status, reply.reason, body)


class _Clock:
    """Context manager that closes a connection after a time, and then raises TimeoutError.

    Args:
        connection: the connection, not yet open.
        seconds: time after which the connection is closed.
    """

    def __init__(self, connection: http.client.HTTPConnection, seconds: float) -> None:
        self._connection = connection
        self._late = Event()
        self._socket: socket | None = None
        self._timer = Timer(seconds, self._close)
        self._timer.daemon = True

    def connect(self) -> None:
        """Connect, and keep the socket, which the connection drops before the reply is read.

        Raises:
            TimeoutError: the time was over before the connection was open.
            OSError: no server listens.
        """
        self._connection.connect()
        self._socket = self._connection.sock
        if self._late.is_set():
            raise TimeoutError

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Stop the clock.

        Raises:
            TimeoutError: the time was over, whatever reading from the closed connection raised or returned.
        """
        self._timer.cancel()
        if self._late.is_set() and (error is None or isinstance(error, (OSError, http.client.HTTPException))):
            raise TimeoutError from error

    def _close(self) -> None:
        self._late.set()
        opened = self._socket or self._connection.sock  # the latter during the TLS handshake
        if opened is not None:
            with suppress(OSError):  # closed already
                opened.shutdown(SHUT_RDWR)
