"""A stand-in for the carrier's API, which answers after a set delay.

    python -m example_project.partner --port 8001 --delay 0.2

One process, no dependencies: waiting costs asyncio next to nothing, so that it
serves hundreds of requests at a time and is never what the demo measures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import zlib

PLACES = ["Rotterdam", "Antwerp", "Cologne", "Lyon", "Turin", "Vienna", "Gdańsk", "Malmö"]

HEAD_LIMIT = 16 * 1024


def parcel(number: str) -> dict[str, object]:
    """What the carrier knows of a parcel: made up, but always the same."""
    digest = zlib.crc32(number.encode())
    return {
        "number": number,
        "place": PLACES[digest % len(PLACES)],
        "progress": digest // 8 % 101,
    }


def answer(method: str, path: str, body: bytes) -> tuple[str, dict[str, object]]:
    """Return the status line's end and the JSON body for one request."""
    if path == "/health":
        return "200 OK", {"ready": True}
    if method == "GET" and (found := re.fullmatch(r"/parcels/([\w-]{1,40})", path)):
        return "200 OK", parcel(found[1])
    if method == "POST" and path == "/parcels":
        try:
            reference = str(json.loads(body)["reference"])
        except (ValueError, KeyError, TypeError):
            return "400 Bad Request", {"error": 'Send JSON such as {"reference": "Order 1"}.'}
        return "201 Created", {"number": f"PX{zlib.crc32(reference.encode()):010d}"}
    return "404 Not Found", {"error": "There is no such page."}


class Partner:
    """The HTTP server: just enough of HTTP/1.1 for well-behaved clients."""

    def __init__(self, delay: float) -> None:
        self.delay = delay

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client's requests until it hangs up."""
        try:
            while await self.serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # The client went away, or does not speak HTTP.
        finally:
            writer.close()

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; say whether the client may send another."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *header_lines = head.rstrip().split("\r\n")
        method, path, _, *_ = [*request_line.split(" "), "", ""]
        fields = (line.partition(":") for line in header_lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        length = headers.get("content-length", "0")
        body = await reader.readexactly(int(length) if length.isdigit() else 0)

        # Whoever waits for the server to come up must not wait for the delay.
        if path != "/health":
            await asyncio.sleep(self.delay)

        status, content = answer(method, path, body)
        keep_alive = headers.get("connection", "keep-alive").lower() != "close"
        payload = json.dumps(content).encode()
        writer.write(
            f"HTTP/1.1 {status}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n"
            f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n"
            "\r\n".encode()
            + payload
        )
        await writer.drain()
        return keep_alive


async def run(host: str, port: int, delay: float) -> None:
    server = await asyncio.start_server(Partner(delay).serve, host, port, limit=HEAD_LIMIT, backlog=1024)
    async with server:
        print(f"The carrier listens on http://{host}:{port}/, {delay * 1000:.0f} ms away.", flush=True)
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for a slow carrier's API.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--delay", type=float, default=0.2, help="seconds before each answer")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(options.host, options.port, options.delay))


if __name__ == "__main__":
    main()
