"""A network between the application and its server, which can be lost.

    python -m example_project.chaos.proxy LISTEN_ON CONNECT_TO

Both addresses are paths of sockets. A line on standard input says what becomes of it:

``lose``   From now on nothing arrives, either way, and nobody is told.
``heal``   The network is back, but whatever stood between the two has forgotten the connections of before. Those that
           have sent anything meanwhile are reset now, since the system has gone on sending it; those that were quiet
           look fine, and are reset when their next packet comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_project.processes import ROOT, Trouble, environment, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Network:
    """The proxy as seen by who breaks it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def lose(self) -> None:
        self._say("lose")

    def heal(self) -> None:
        self._say("heal")

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        if self.process.stdout.readline().strip() != word:
            raise Trouble("The network has ended by itself.")


@contextlib.contextmanager
def in_front_of(conninfo: str, *, directory: Path) -> Iterator[tuple[Network, str]]:
    """Run the proxy; yield it, and what leads through it. *directory* is for its socket."""
    found = conninfo_to_dict(conninfo)
    own = free_port()
    listening = directory / f".s.PGSQL.{own}"
    command = [sys.executable, "-m", __name__, str(listening), f"{found['host']}/.s.PGSQL.{found['port']}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # It ends with its standard input, whatever becomes of this process.
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield Network(process), make_conninfo(conninfo, host=str(directory), port=own)
        finally:
            process.stdin.close()


class Pair:
    """A connection of the application, and what it leads to."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.ends = (client, server)
        self.forgotten = False
        self.swallowed = False

    def reset(self) -> None:
        for end in self.ends:
            # With what was sent and is on its way: nobody is told of an orderly end.
            with contextlib.suppress(OSError):
                sock = end.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()


class Proxy:
    def __init__(self, target: str) -> None:
        self.target = target
        self.lost = False
        self.pairs: set[Pair] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self.target)
        except OSError:
            writer.close()
            return
        pair = Pair(writer, server_writer)
        # One that comes while the network is lost is never answered.
        self.pairs.add(pair)
        await asyncio.gather(self.pass_on(pair, reader, server_writer), self.pass_on(pair, server_reader, writer))
        self.pairs.discard(pair)

    async def pass_on(self, pair: Pair, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if self.lost:
                    pair.swallowed = True
                elif pair.forgotten:
                    pair.reset()
                    return
                else:
                    target.write(data)
                    await target.drain()
        # Its end is not told either, while the network is lost.
        if self.lost:
            pair.swallowed = True
        else:
            target.close()

    def lose(self) -> None:
        self.lost = True

    def heal(self) -> None:
        self.lost = False
        for pair in self.pairs:
            pair.forgotten = True
            if pair.swallowed:
                pair.reset()


async def run(listen_on: str, connect_to: str) -> None:
    proxy = Proxy(connect_to)
    async with await asyncio.start_unix_server(proxy.serve, listen_on, backlog=1024):
        print("ready", flush=True)
        words = {"lose": proxy.lose, "heal": proxy.heal}
        while line := await asyncio.to_thread(sys.stdin.readline):
            words[line.strip()]()
            print(line.strip(), flush=True)


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
