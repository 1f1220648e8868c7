"""The processes of a run know of each other's end: a roll call at the start, then a connection that stays open.

Process 0 listens; every other one connects, says who it is and is let go once all are there. From then on a
process that fails says why, and one that dies closes its connection or falls silent: the others end too, in
bounded time and with one line that names it. Messages are lines of JSON. Nothing here needs jax.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field

from jdepth.errors import UserError

# Seconds between two attempts to connect, and for a newcomer to say who it is.
RETRY, GREETING = 0.5, 10.0


@dataclass
class Peer:
    """One end of a connection."""

    number: int
    host: str
    connection: socket.socket
    lines: object
    sending: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def of(connection: socket.socket, number: int = 0, host: str = "") -> "Peer":
        return Peer(number, host, connection, connection.makefile("r", encoding="utf-8", errors="replace"))

    def send(self, **message) -> bool:
        """Whether the message could be sent."""
        try:
            with self.sending:
                self.connection.sendall(json.dumps(message).encode() + b"\n")
            return True
        except OSError:
            return False

    def receive(self, seconds: float) -> dict | None:
        """The next message; None where the other end is gone. Raises TimeoutError after so many seconds of silence."""
        self.connection.settimeout(seconds)
        try:
            line = self.lines.readline()
            message = json.loads(line) if line.endswith("\n") else None
        except TimeoutError:
            raise
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None


class Lifeline:
    """This process's connections to the others of a run.

    Args:
      peers: of process 0 all others; of another process: process 0.
      number, count: this process and how many there are.
      silence: seconds without a sign of life after which a process counts as dead.
    """

    def __init__(self, peers: list[Peer], number: int, count: int, silence: float):
        self._peers, self._number, self._count, self._silence = peers, number, count, silence
        self._leaving, self._ending = threading.Event(), threading.Lock()

    def watch(self) -> "Lifeline":
        """Start to give and to expect signs of life."""
        for peer in self._peers:
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def leave(self) -> None:
        """This process has done its work: nothing is expected of it any more."""
        self._leaving.set()
        for peer in self._peers:
            peer.send(bye=True)

    def fail(self, reason: str, code: int) -> None:
        """Say why this process ends, here and to the others, and end it with `code`; does not return."""
        self._end(reason, code, f"{_name(self._number, self._count, socket.gethostname())}: {reason}")

    def _listen(self, peer: Peer) -> None:
        name = _name(peer.number, self._count, peer.host)
        while True:
            try:
                message = peer.receive(self._silence)
            except TimeoutError:
                return self._end(f"{name} has given no sign of life for {self._silence:g} s; see its own output", 1)
            if message is None:
                return None if self._leaving.is_set() else self._end(f"{name} has died; see its own output", 1)
            if "error" in message:
                return self._end(str(message["error"]), int(message.get("code", 1)))
            if "bye" in message:
                return None

    def _beat(self) -> None:
        while not self._leaving.wait(self._silence / 5):
            for peer in self._peers:
                peer.send(alive=True)

    def _end(self, reason: str, code: int, elsewhere: str = "") -> None:
        # Only once, whichever thread comes first; the others of this process wait for the end here.
        self._ending.acquire()
        self._leaving.set()
        told = [peer for peer in self._peers if peer.send(error=elsewhere or reason, code=code)]
        with contextlib.suppress(OSError, ValueError):
            os.write(2, f"error: {reason}\n".encode())  # also from within a signal's handler
        if self._number == 0:
            # jax aborts the others as soon as process 0 is gone; they shall have read why by then.
            time.sleep(0.5 if told else 0)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # Not sys.exit: jax would wait at the exit for processes that wait for this one.
        os._exit(code)


def _name(number: int, count: int, host: str) -> str:
    return f"process {number} of {count} on {host}"


def roll_call(address: str, number: int, count: int, timeout: float, silence: float) -> Lifeline:
    """Meet the other processes of a run.

    Args:
      address: host:port at which process 0 listens.
      number, count: this process and how many there are.
      timeout: seconds within which all must be there.
      silence: as in `Lifeline`.

    Raises UserError naming who is missing, or what does not fit together.
    """
    host, port = address.rsplit(":", 1)
    meet = _gather if number == 0 else _report
    return Lifeline(meet(host, int(port), number, count, timeout), number, count, silence).watch()


def _gather(host: str, port: int, number: int, count: int, timeout: float) -> list[Peer]:
    deadline, peers = time.monotonic() + timeout, {}

    def refuse(reason: str) -> UserError:
        for peer in peers.values():
            peer.send(error=reason)
        return UserError(reason)

    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"JDEPTH_COORDINATOR: process 0 cannot listen at port {port} of {socket.gethostname()} "
            f"({error.strerror}): choose another port"
        ) from error
    with listener:
        while len(peers) < count - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = ", ".join(str(k) for k in range(1, count) if k not in peers)
                raise refuse(
                    f"{len(peers) + 1} of {count} processes have come to {host}:{port} within {timeout:g} s; missing: "
                    f"process {missing}. Were they started, with the same JDEPTH_COORDINATOR, and can their hosts "
                    "reach this one?"
                )
            listener.settimeout(left)
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            newcomer = Peer.of(connection)
            try:
                hello = newcomer.receive(min(GREETING, max(left, 0.1))) or {}
            except TimeoutError:
                hello = {}
            if "process" not in hello:  # something else that knocks at ports
                connection.close()
                continue
            newcomer.number, newcomer.host = hello["process"], hello.get("host", "?")
            known = peers.setdefault(newcomer.number, newcomer)
            if hello.get("processes") != count:
                raise refuse(
                    f"JDEPTH_PROCESSES: process {newcomer.number} on {newcomer.host} says {hello.get('processes')}, "
                    f"process 0 says {count}: give all the same number"
                )
            if known is not newcomer:
                reason = (
                    f"JDEPTH_PROCESS: two processes, on {known.host} and on {newcomer.host}, say that they are "
                    f"number {newcomer.number}: give each its own"
                )
                newcomer.send(error=reason)
                raise refuse(reason)
    for peer in peers.values():
        peer.send(go=True)
    return [peers[k] for k in sorted(peers)]


def _report(host: str, port: int, number: int, count: int, timeout: float) -> list[Peer]:
    deadline = time.monotonic() + timeout
    hello = {"process": number, "processes": count, "host": socket.gethostname()}
    reason = "no attempt"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection((host, port), timeout=left)
        except OSError as error:  # also a name that is not known yet
            reason = error.strerror or str(error)
            time.sleep(min(RETRY, left))
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = Peer.of(connection, 0, host)
        head.send(**hello)
        try:
            # Process 0 started earlier, or later, than this one: its answer may take its own timeout.
            answer = head.receive(left + GREETING)
        except TimeoutError:
            answer, reason = None, "it accepts connections and says nothing"
        if answer and "error" in answer:
            raise UserError(str(answer["error"]))
        if answer and "go" in answer:
            return [head]
        connection.close()
        time.sleep(min(RETRY, max(deadline - time.monotonic(), 0)))
    raise UserError(
        f"process {number} of {count}: no roll call by process 0 at {host}:{port} within {timeout:g} s ({reason}): was "
        "process 0 started, does JDEPTH_COORDINATOR name its host, and is the port open?"
    )
