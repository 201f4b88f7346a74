"""Downloads from a server of the test's own: no outside network."""

import hashlib
import http.server
import threading
import time

import pytest

from oa_jax.data import catalogue
from oa_jax.data.catalogue import DataSet, File, Source
from oa_jax.data.texts import Reading
from oa_jax.errors import UserError

CONTENT = b"u,i,5.0,1\n" * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/none":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) * (1 + (self.path == "/cut"))))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def data_set(server, *names, sha256=None):
    files = tuple(
        File(f"{n}.csv", "https://page", None, f"http://127.0.0.1:{server.server_port}/{n}", sha256)
        for n in names
    )
    return DataSet("toy", "P", ("a", "b"), (Source("files", "m.f", files),))


def test_files_come_once_and_whole(server, tmp_path):
    toy = data_set(server, "one", "two", sha256=hashlib.sha256(CONTENT).hexdigest())
    seen = []
    catalogue.complete(toy, tmp_path, Reading(lambda path, n: seen.append(n)))
    assert (tmp_path / "toy" / "one.csv").read_bytes() == CONTENT and seen[-1] == len(CONTENT)
    catalogue.complete(toy, tmp_path, Reading())
    assert server.asked == ["/one", "/two"]
    (tmp_path / "toy" / "one.csv").unlink()
    catalogue.complete(toy, tmp_path, Reading())
    assert server.asked == ["/one", "/two", "/one"]


@pytest.mark.parametrize(
    ("name", "sha256", "expected"),
    [
        ("none", None, "none.csv: cannot download http://.*: Not Found; see https://page"),
        ("cut", None, "cut.csv: .* gave 10000 bytes, .*: expected 20000 bytes; see https://page"),
        ("one", "0" * 64, "one.csv: .*: expected sha256 0000"),
    ],
)
def test_what_does_not_come_leaves_nothing(server, tmp_path, name, sha256, expected):
    with pytest.raises(UserError, match=expected):
        catalogue.complete(data_set(server, name, sha256=sha256), tmp_path, Reading())
    assert server.asked == [f"/{name}"]  # no second attempt
    assert not list((tmp_path / "toy").iterdir())


def test_offline_is_an_answer_at_once(server, tmp_path):
    toy = data_set(server, "one")
    server.shutdown()
    server.server_close()
    start = time.monotonic()
    with pytest.raises(UserError, match="one.csv: cannot download .*refused; see https://page"):
        catalogue.complete(toy, tmp_path, Reading())
    assert time.monotonic() - start < catalogue.TIMEOUT_S


def test_files_without_a_url_are_named_by_their_page(tmp_path):
    toy = DataSet("toy", "P", ("a", "b"), (Source("s", "m.f", (File("x", "https://page"),)),))
    with pytest.raises(
        UserError, match="toy: not every file has a URL of its own: see https://page"
    ):
        catalogue.complete(toy, tmp_path, Reading())
