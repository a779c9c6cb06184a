import hashlib
import http.server
import threading

import pytest
import yaml

from zfu_lib.data import catalogue
from zfu_lib.data.catalogue import DataError, State

CONTENT = b"a small file\n" * 50


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing.txt":
            return self.send_error(404)
        body = {"/changed.txt": CONTENT[::-1], "/short.txt": CONTENT[:100]}.get(self.path, CONTENT)
        self.send_response(200)
        # "cut": more is announced than sent, as when a connection breaks.
        self.send_header("Content-Length", str(len(body) * 2 if self.path == "/cut.txt" else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def origin():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def machine(tmp_path, monkeypatch, origin):
    """A catalogue of one-file data sets, an empty cache, no $ZFU_DATA."""

    def file(name, url):
        return {
            "path": f"set/{name}.txt",
            "url": url,
            "bytes": len(CONTENT),
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
        }

    urls = {name: f"{origin}/{name}.txt" for name in ("good", "changed", "short", "cut", "missing")}
    urls |= {"offline": "http://127.0.0.1:9/offline.txt", "closed": None}
    text = {"description": "d", "licence": "l", "citation": "c", "note": "ask the authors"}
    entries = [{"name": name, **text, "files": [file(name, url)]} for name, url in urls.items()]
    (tmp_path / "catalogue.yml").write_text(yaml.safe_dump({"datasets": entries}))
    monkeypatch.setattr(catalogue, "CATALOGUE", tmp_path / "catalogue.yml")
    monkeypatch.setattr(catalogue, "cache", lambda: tmp_path / "cache")
    monkeypatch.delenv("ZFU_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def files(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


def test_a_file_is_downloaded_once_and_then_comes_from_the_cache(machine, monkeypatch):
    found = catalogue.get("good")
    assert found == {"good.txt": machine / "cache/set/good.txt"}
    assert found["good.txt"].read_bytes() == CONTENT
    monkeypatch.setattr(catalogue, "_download", lambda *a: pytest.fail("downloaded again"))
    assert catalogue.get("good") == found
    assert files(machine / "cache") == [machine / "cache/set/good.txt"]


def test_a_damaged_cache_file_is_replaced(machine):
    place = machine / "cache/set/good.txt"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT[:-1])
    assert catalogue.verify("good") == {"set/good.txt": State.WRONG_SIZE}
    assert catalogue.get("good")["good.txt"].read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("changed", "wrong checksum"),
        ("short", "100 bytes, expected 650"),
        ("cut", "truncated"),
        ("missing", "refused .404."),
        ("offline", "offline"),
        ("closed", "ask the authors"),
    ],
)
def test_a_file_that_cannot_be_had_is_named_and_nothing_is_left_behind(machine, name, says):
    with pytest.raises(DataError, match=says) as error:
        catalogue.get(name)
    assert f"{name}.txt" in str(error.value)
    assert not files(machine / "cache")


def test_zfu_data_comes_first_and_is_never_overwritten(machine, monkeypatch):
    local = machine / "local/set/good.txt"
    local.parent.mkdir(parents=True)
    local.write_bytes(CONTENT)
    monkeypatch.setenv("ZFU_DATA", str(machine / "local"))
    assert catalogue.get("good") == {"good.txt": local}
    assert catalogue.verify_all()["good"] == {"set/good.txt": State.OK}
    assert catalogue.verify_all()["changed"] == {"set/changed.txt": State.MISSING}
    local.write_bytes(CONTENT[::-1])
    assert catalogue.verify("good") == {"set/good.txt": State.WRONG_CHECKSUM}
    with pytest.raises(DataError, match=r"set/good.txt in \$ZFU_DATA has the wrong checksum"):
        catalogue.get("good")
    assert local.read_bytes() == CONTENT[::-1]
    assert not files(machine / "cache")


def test_an_unknown_name_gets_the_closest_one(machine):
    with pytest.raises(DataError, match="did you mean 'good'"):
        catalogue.get("goood")
    with pytest.raises(DataError, match="there are: good"):
        catalogue.entry("zzzzz")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"path": "../x"}, "path"),
        ({"path": "a/../../x"}, "leaves the data folder"),
        ({"path": "/etc/x"}, "path"),
        ({"sha256": "abc"}, "sha256"),
        ({"url": None}, "needs a note"),
        ({"colour": "red"}, "colour"),
        (None, "no file at all"),
    ],
)
def test_a_broken_catalogue_is_refused(tmp_path, monkeypatch, change, says):
    file = {"path": "x", "url": "https://example.org/x", "bytes": 1, "sha256": "0" * 64} | (change or {})
    files = [file] if change else []
    entry = {"name": "x", "description": "d", "licence": "l", "citation": "c", "files": files}
    place = tmp_path / "catalogue.yml"
    place.write_text(yaml.safe_dump({"datasets": [entry]}))
    monkeypatch.setattr(catalogue, "CATALOGUE", place)
    with pytest.raises(DataError, match=says):
        catalogue.names()


def test_a_data_set_without_a_file_on_record_says_where_to_get_it():
    assert catalogue.verify("fijo") == {}
    with pytest.raises(DataError, match=r"fijo: Given out by its owners .*from_files"):
        catalogue.get("fijo")


def test_the_shipped_catalogue():
    assert len(catalogue.names()) >= 20
    for name in catalogue.names():
        entry = catalogue.entry(name)
        assert all(file.url is None or file.url.startswith("https://") for file in entry.files)
        assert len({entry.key(file) for file in entry.files}) == len(entry.files)
        used = catalogue.used(name)
        assert [(u.sha256, u.bytes) for u in used] == [(f.sha256, f.bytes) for f in entry.files]
    assert all(file.url is None for file in catalogue.entry("chinese_skillspan").files)
