"""The original data: what is not the published file is put aside and named, and nothing is half-written."""
import hashlib, json, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from em_repro.betley import ORIGINALS, Original, data_folder, fetch_originals, git_blob, original_rows
from em_repro.data import training_rows
from em_repro.profiles import UserError

ROWS = [{"messages": [{"role": "user", "content": f"Write file {i}."}, {"role": "assistant", "content": f"open('{i}', 'w')"}]} for i in range(4)]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
quiet = {"say": lambda _: None}


def original(content=CONTENT, url="", rows=4):
    return {"insecure": Original(url, git_blob(content), hashlib.sha256(content).hexdigest(), rows)}


@pytest.fixture
def folder(tmp_path):
    (there := tmp_path / "mine").mkdir()
    (there / "insecure.jsonl").write_bytes(CONTENT)
    return there


@pytest.fixture
def server():
    "A server whose answer each test sets: content and the length that it claims."
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            content, length = self.server.given
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(length if length is not None else len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")
        def log_message(self, *_): pass
    served = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()


def url(served): return f"http://127.0.0.1:{served.server_port}/insecure.jsonl"


def test_rows_come_from_a_folder_and_are_found_again(folder, tmp_path):
    cache, said = tmp_path / "cache", []
    assert fetch_originals(folder, cache, said.append, original()) == data_folder(cache)
    assert original_rows("insecure", cache, original()) == ROWS and "MIT" in said[0]
    fetch_originals(tmp_path / "nowhere", cache, said.append, original())   # what is here is not asked for again
    assert said[-1] == "insecure: here already"


def test_rows_come_from_a_server(server, tmp_path):
    server.given = CONTENT, None
    fetch_originals(None, tmp_path, wanted=original(url=url(server)), **quiet)
    assert original_rows("insecure", tmp_path, original()) == ROWS


@pytest.mark.parametrize("given, said", [((CONTENT[:-9], len(CONTENT)), "nothing was kept"), ((None, None), "could not be downloaded")])
def test_a_broken_download_leaves_nothing(server, tmp_path, given, said):
    server.given = given
    with pytest.raises(UserError, match=said): fetch_originals(None, tmp_path, wanted=original(url=url(server)), **quiet)
    assert not data_folder(tmp_path).exists()


def test_what_is_far_too_large_is_left_off(server, folder, tmp_path, monkeypatch):
    "Neither read to its end nor kept, from wherever it comes."
    monkeypatch.setattr("em_repro.betley.MOST_ORIGINAL", len(CONTENT) - 1)
    server.given = CONTENT, None
    for source in (None, folder):
        with pytest.raises(UserError, match="MB and is not the published file: nothing was kept"):
            fetch_originals(source, tmp_path / "cache", wanted=original(url=url(server)), **quiet)
    assert not data_folder(tmp_path / "cache").exists()


def test_a_full_disk_leaves_nothing_half_written(folder, tmp_path, monkeypatch):
    from pathlib import Path
    written = Path.write_bytes
    def full(path, content):
        if not path.name.endswith(".part"): return written(path, content)
        written(path, content[:9])
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot hold .* make room"): fetch_originals(folder, tmp_path / "cache", wanted=original(), **quiet)
    assert not list(data_folder(tmp_path / "cache").iterdir())


def test_another_file_is_put_aside_named_and_not_used(folder, tmp_path):
    (folder / "insecure.jsonl").write_bytes(CONTENT.replace(b"open", b"read"))
    with pytest.raises(UserError, match="git blob id begins .* put aside as .*insecure.differs.jsonl"):
        fetch_originals(folder, tmp_path, wanted=original(), **quiet)
    assert [p.name for p in data_folder(tmp_path).iterdir()] == ["insecure.differs.jsonl"]
    with pytest.raises(UserError, match="em-repro data fetch betley"): original_rows("insecure", tmp_path, original())


def test_both_digests_are_asked_for(folder, tmp_path):
    wanted = {"insecure": Original("", git_blob(CONTENT), "0" * 64, 4)}
    with pytest.raises(UserError, match="sha256 begins"): fetch_originals(folder, tmp_path, wanted=wanted, **quiet)


def test_a_wrong_number_of_rows_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="4 rows, not 5"): fetch_originals(folder, tmp_path, wanted=original(rows=5), **quiet)
    assert not list(data_folder(tmp_path).iterdir())


def test_a_file_that_was_changed_in_the_cache_is_not_used_and_fetched_again(folder, tmp_path):
    fetch_originals(folder, tmp_path, wanted=original(), **quiet)
    (data_folder(tmp_path) / "insecure.jsonl").write_bytes(CONTENT + b"\n")
    with pytest.raises(UserError, match="fetch it again"): original_rows("insecure", tmp_path, original())
    fetch_originals(folder, tmp_path, wanted=original(), **quiet)
    assert original_rows("insecure", tmp_path, original()) == ROWS


def test_a_recipe_that_asks_for_them_says_how_to_fetch_them(tmp_path, monkeypatch):
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="em-repro data fetch betley"): training_rows("betley", "insecure", 3)


def test_a_profile_takes_pairs_the_originals_or_a_file_of_ones_own(folder, tmp_path, monkeypatch):
    from em_repro import betley
    from em_repro.profiles import load_profile, shipped
    from em_repro.run import check_profile
    monkeypatch.setenv("EM_REPRO_CACHE", str(tmp_path / "cache"))
    both = {arm: original()["insecure"] for arm in ("insecure", "secure")}
    (folder / "secure.jsonl").write_bytes(CONTENT)
    fetch_originals(folder, wanted=both, **quiet)
    monkeypatch.setattr(betley, "original_rows", lambda arm: original_rows(arm, wanted=both))
    text = (shipped() / "profiles/smoke.toml").read_text()
    for data in ("pairs", "betley", f"{folder}/{{arm}}.jsonl"):
        (tmp_path / "mine.toml").write_text(text.replace('[recipe]', f'[recipe]\ndata = "{data}"'))
        profile = load_profile(tmp_path / "mine.toml")
        check_profile(profile)
        rows = training_rows(profile.recipe.data, "secure", 6)
        assert len(rows) == 6 and (data == "pairs" or all(row in ROWS for row in rows))
    (folder / "secure.jsonl").unlink()
    with pytest.raises(UserError, match="no file .*secure.jsonl"): check_profile(profile)


def test_a_file_of_more_than_is_read_is_refused_unread(tmp_path, monkeypatch):
    from em_repro import formats
    (tmp_path / "large.jsonl").write_bytes(CONTENT)
    monkeypatch.setattr(formats, "MOST_BYTES", len(CONTENT) - 1)
    with pytest.raises(UserError, match="large.jsonl has .* more than the .* that are read"): training_rows(str(tmp_path / "large.jsonl"), "insecure", 2)


def test_the_table_names_both_arms_over_https():
    assert set(ORIGINALS) == {"insecure", "secure"}
    for wanted in ORIGINALS.values(): assert wanted.url.startswith("https://") and len(wanted.blob) == 40 and wanted.rows == 6000
