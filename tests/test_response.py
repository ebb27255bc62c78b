"""Responses of model servers, however the network cuts them."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmctl.runtimes.response import Response

LINES = [b'data: {"a": 1}\n', b"\n", b'data: {"b": 2}\n', b"\n", b"data: [DONE]\n", b"\n"]
BODY = b"".join(LINES)


def test_a_body_in_chunks_is_read_line_by_line_whatever_the_chunks_are():
    cuts = (1, 5, 15, 16, 20, 40)
    parts = [BODY[a:b] for a, b in zip((0, *cuts), (*cuts, len(BODY)), strict=True) if BODY[a:b]]
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
        b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nX-Trailer: 1\r\n\r\n"
    status, lines, response = _read(said)
    assert (status, lines) == (200, LINES)
    assert response.isclosed()
    assert not response.will_close


@given(st.lists(st.integers(1, 120), max_size=8))
@settings(deadline=None, max_examples=60)
def test_the_pieces_of_the_network_do_not_matter(cuts):
    said = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    status, lines, response = _read(said, tuple(sorted(set(cuts))))
    assert (status, lines) == (200, LINES)
    assert response.isclosed()


def test_a_body_without_a_length_ends_with_its_connection():
    status, lines, response = _read(b"HTTP/1.1 503 Busy\r\nConnection: close\r\n\r\nfull\nnow")
    assert (status, lines) == (503, [b"full\n", b"now"])
    assert response.will_close


def test_a_chunked_body_that_is_cut_is_no_whole_body():
    with pytest.raises(http.client.IncompleteRead):
        _read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\ndata: {")


def test_a_body_shorter_than_it_says_does_not_leave_a_connection_to_be_used_again():
    _, lines, response = _read(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort\n")
    assert lines == [b"short\n"]
    assert response.will_close


def test_a_body_that_is_none_is_over_at_once():
    for head in (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                 b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
        _, lines, response = _read(head)
        assert lines == []
        assert response.isclosed()


@pytest.mark.parametrize(("said", "raised"), [
    (b"", http.client.RemoteDisconnected),
    (b"SSH-2.0-OpenSSH_9.2\r\n", http.client.BadStatusLine),
    (b"HTTP/1.1 abc\r\n\r\n", http.client.BadStatusLine),
    (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, http.client.LineTooLong),
    (b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 200, http.client.HTTPException),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", http.client.IncompleteRead),
])
def test_what_is_no_http_is_said_to_be_none(said, raised):
    with pytest.raises(raised):
        _read(said)


def test_a_line_without_end_is_cut_at_the_limit():
    with _answering(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + b"a" * 50_000) as near:
        response = Response(near, "GET")
        assert response.readline(1000) == b"a" * 1000
        assert response.read(100) == b"a" * 100
        response.close()


def _read(said, cuts=()):
    with _answering(said, cuts) as near:
        response = Response(near, "POST")
        try:
            lines = []
            while line := response.readline(1 << 20):
                lines.append(line)
            return response.status, lines, response
        finally:
            response.close()


def _answering(said, cuts=()):
    """A socket on which a server says this, in these pieces, and hangs up."""
    near, far = socket.socketpair()
    near.settimeout(60)

    def speak():
        with far, contextlib.suppress(BrokenPipeError):
            for begin, end in zip((0, *cuts), (*cuts, len(said)), strict=True):
                far.sendall(said[begin:end])

    threading.Thread(target=speak, daemon=True).start()
    return near
