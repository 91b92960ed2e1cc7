"""Messages between the supervisor and one child, over a pair of sockets.

    4 bytes   length of the head
    4 bytes   length of the body
    head      JSON: [kind, number, fields]
    body      bytes as they are: an upload, a response

A question has a number, and its answer has the same. What is only told has the number 0. Both ends may ask.

Everything is bounded: the length of a message, what waits to be sent, and the questions of each end. Clients
cause questions and answers: while much waits to be sent, those are refused. A peer that breaks a bound also
without them is one that does not work, and the channel ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from itertools import count
from struct import Struct
from typing import Any, Final, NamedTuple, Protocol, cast

import orjson
import structlog

from jetstream.limits import SupervisorLimits
from jetstream.logging_setup import Throttled

# Two unsigned integers, little endian: both ends run on one machine, and the order is fixed all the
# same.
LENGTHS: Final = Struct("<II")
# The kinds of the two answers to a question. A message that is told or asked never has them.
_ANSWER: Final = "answer"
_NO_ANSWER: Final = "no answer"
# Why a question is refused while more than half of `unsent_bytes_max` waits to be sent.
_FULL: Final = "too much waits to be sent"


class ChannelMessage(NamedTuple):
    """A message: what kind it is, its fields, and bytes that belong to it.

    `fields` is any JSON object; integers in it fit into 64 bits, which is what orjson can write. The
    body is not looked at. An empty kind is given to answers, whose kind the channel sets itself.
    """

    kind: str
    fields: Mapping[str, Any] = {}
    body: bytes = b""
    number: int = 0  # of a question, and of its answer; 0: none is awaited

    def encode(self) -> bytes:
        """Return the bytes of the message.

        Raises TypeError for fields that JSON does not have.
        """
        head = orjson.dumps([self.kind, self.number, self.fields])
        return b"".join((LENGTHS.pack(len(head), len(self.body)), head, self.body))


class ChannelError(Exception):
    """A question has no answer: the channel has ended, it has too many questions, or the time is over.

    Its text is for people, and is shown to clients in a response of status 503.
    """


class Peer(Protocol):
    """What one end of a channel does with what comes.

    The supervisor has one for each child (`process`), and a child has one (`siblings`). All methods are
    called in the event loop's thread; `told` must not block.
    """

    def told(self, message: ChannelMessage) -> None:
        """Take a message that is not answered.

        Raises nothing: an error here would end the channel.
        """

    def asked(self, message: ChannelMessage) -> Awaitable[ChannelMessage]:
        """Return the answer to a question. Its kind and number do not matter.

        Whatever it raises is logged by the channel, and the other end is told that there is no answer.
        """

    def lost(self) -> None:
        """Record that the channel has ended.

        It is called once, whichever end closed it.
        """


class Channel(asyncio.Protocol):
    """One end of a channel. The event loop calls its methods `connection_…` and `data_received`.

    A channel lives as long as the child does. It is made for a socket pair that both ends have already,
    so there is no handshake. Messages arrive in the order in which they were sent, and answers in any
    order.
    """

    def __init__(self, peer: Peer, limits: SupervisorLimits = SupervisorLimits()) -> None:
        # What is done with messages that come. Called from `data_received`.
        self._peer = peer
        # `message_bytes_max`, `unsent_bytes_max` and `questions_max`.
        self._limits = limits
        # Throttled: clients cause questions, and so errors in answering them.
        self._logger = Throttled(structlog.get_logger(__name__))
        # The beginning of a message that is not complete.
        self._incoming = bytearray()
        # The answers that are awaited, by the number of their question.
        self._awaited: dict[int, asyncio.Future[ChannelMessage]] = {}
        # The number of the next question. 0 is for what is not answered.
        self._numbers = count(1)
        # Questions of the other end that are being answered, at most `questions_max`.
        self._answering: set[asyncio.Task[None]] = set()
        # From `connection_made` to the end.
        self._transport: asyncio.Transport | None = None
        # Set once the channel has ended.
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to send; what is told before this is lost."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take the messages that are complete. One that is too long ends the channel.

        The rest waits in `_incoming` for more. `told` of the peer has returned before the next message
        is looked at.
        """
        incoming, start = self._incoming, 0
        incoming += data
        while (found := _message(incoming, start, self._limits.message_bytes_max)) is not None:
            message, start = found
            self._take(message)
        del incoming[:start]
        if _is_too_long(incoming, self._limits.message_bytes_max):
            self.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        """End what is awaited.

        A task that awaits an answer gets a ChannelError, and answers that are being made are cancelled.
        """
        self._transport = None
        for future in self._awaited.values():
            if not future.done():
                future.set_exception(ChannelError("the process has ended"))
        for task in self._answering:
            task.cancel()
        self.ended.set()
        self._peer.lost()

    def tell(self, kind: str, fields: Mapping[str, Any] | None = None, body: bytes = b"") -> None:
        """Send a message that is not answered. Nothing happens once the channel has ended.

        What is told is not refused while much waits to be sent: figures, limits and heartbeats must
        arrive. So it is counted against `unsent_bytes_max`, twice the bound of questions.
        """
        self._send(ChannelMessage(kind, fields or {}, body))

    async def ask(
        self, kind: str, fields: Mapping[str, Any] | None = None, body: bytes = b"", *, within_s: float
    ) -> ChannelMessage:
        """Send a question, and return its answer, which must come within `within_s` seconds.

        Raises ChannelError: the channel has ended or is full, too many questions wait, the time is over, or
        the other end could not answer. An answer that comes too late is dropped.
        """
        if self._transport is None:
            raise ChannelError("the process has ended")
        if len(self._awaited) >= self._limits.questions_max:
            raise ChannelError("too many questions wait for an answer")
        if self._is_full:
            raise ChannelError(_FULL)
        number = next(self._numbers)
        future = self._awaited[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(ChannelMessage(kind, fields or {}, body, number))
            async with asyncio.timeout(within_s):
                answer: ChannelMessage = await future
                return answer
        except TimeoutError:
            raise ChannelError(f"there was no answer within {within_s:g} s") from None
        finally:
            del self._awaited[number]

    async def close(self) -> None:
        """End the channel, once everything is sent."""
        if self._transport is not None:
            self._transport.close()
            await self.ended.wait()

    def abort(self) -> None:
        """End the channel at once."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def _is_full(self) -> bool:
        """Whether so much waits to be sent that only what is told is added."""
        most, transport = self._limits.unsent_bytes_max // 2, self._transport
        return transport is not None and transport.get_write_buffer_size() > most

    def _send(self, message: ChannelMessage) -> None:
        """Send a message. A peer that reads so little does not work: then the channel ends."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > self._limits.unsent_bytes_max:
            transport.abort()
        else:
            transport.write(message.encode())

    def _take(self, message: ChannelMessage) -> None:
        """Do what a message is for: it is an answer, is told, or is a question.

        A question is answered in a task of its own: its answer may take seconds, and others must not
        wait for it.
        """
        if message.kind in (_ANSWER, _NO_ANSWER):
            future = self._awaited.get(message.number)  # None: it was awaited for too long
            if future is None or future.done():
                return
            if message.kind == _ANSWER:
                future.set_result(message)
            else:
                future.set_exception(ChannelError(message.fields["problem"]))
        elif not message.number:
            self._peer.told(message)
        elif len(self._answering) >= self._limits.questions_max:
            self._refuse(message, "too many questions wait for an answer")
        else:
            task = asyncio.get_running_loop().create_task(self._answer(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, question: ChannelMessage) -> None:
        """Answer a question. An error is logged here, and the other end is told that there is no answer."""
        try:
            answer = await self._peer.asked(question)
        except Exception:
            event = "a question of another process could not be answered"
            self._logger.exception(event, question=question.kind)
            self._refuse(question, "the process has failed to answer: its log says why")
        else:
            if self._is_full:
                self._refuse(question, _FULL)
            else:
                self._send(answer._replace(kind=_ANSWER, number=question.number))

    def _refuse(self, question: ChannelMessage, problem: str) -> None:
        """Say why a question has no answer: the other end raises ChannelError with this text."""
        self._send(ChannelMessage(_NO_ANSWER, {"problem": problem}, number=question.number))


def _message(data: bytearray, start: int, bytes_max: int) -> tuple[ChannelMessage, int] | None:
    """Return the message at `start`, and where the next one begins; None if it is not complete.

    None also if it is longer than `bytes_max`: then it never becomes complete, and `_is_too_long` tells
    it. Raises ValueError (orjson.JSONDecodeError) for a head that is no JSON.
    """
    first = start + LENGTHS.size
    if first > len(data):
        return None
    head, body = LENGTHS.unpack_from(data, start)
    if head + body > bytes_max or first + head + body > len(data):
        return None
    kind, number, fields = orjson.loads(data[first : first + head])
    stop = first + head + body
    return ChannelMessage(kind, fields, bytes(data[first + head : stop]), number), stop


def _is_too_long(data: bytearray, bytes_max: int) -> bool:
    """Tell whether the message that `data` begins with is longer than any may be."""
    return len(data) >= LENGTHS.size and sum(LENGTHS.unpack_from(data)) > bytes_max
