"""Files of the Hugging Face Hub as checkpoints: out of a cache laid out by hand, and from a stand-in of the server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import geo3d
from geo3d import errors
from geo3d.checkpoints import hub

_COMMITS = ("a" * 40, "b" * 40)
_FILE = "small/croco.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions of a file of weights."""
    folder = tmp_path_factory.mktemp("models")
    paths = folder / "first.safetensors", folder / "second.safetensors"
    for seed, path in enumerate(paths):
        generator = torch.Generator().manual_seed(seed)
        geo3d.save_model(geo3d.create_model("croco_tiny", generator=generator, encoder_depth=1, decoder_depth=1), path)
    return paths


@pytest.fixture
def cache(models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of huggingface_hub's that holds both, offline: blobs, snapshots by commit, and names of revisions."""
    constants = pytest.importorskip("huggingface_hub.constants")
    repository = tmp_path / "hub" / "models--someone--rooms"
    for commit, path in zip(_COMMITS, models):
        content = path.read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = repository / "snapshots" / commit / _FILE
        link.parent.mkdir(parents=True)
        link.symlink_to(blob)
    for name, commit in (("main", _COMMITS[1]), ("v1", _COMMITS[0])):
        ref = repository / "refs" / name
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def _same(model: geo3d.Encoder, path: Path) -> bool:
    other = geo3d.create_model(checkpoint=path).state_dict()
    return all(torch.equal(value, other[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("text", "repository", "file", "revision"),
    [
        ("hf://a/b/c.pth", "a/b", "c.pth", None),
        ("hf:/a/b/c.pth", "a/b", "c.pth", None),  # what a Path makes of it
        ("hf://a/b/folder/c.pth@v1.0", "a/b", "folder/c.pth", "v1.0"),
        ("hf://a/b/c.pth@refs/pr/1", "a/b", "c.pth", "refs/pr/1"),
        ("hf://a/b@v1/folder/c.pth", "a/b", "folder/c.pth", "v1"),
    ],
)
def test_references_are_read(text: str, repository: str, file: str, revision: str | None) -> None:
    assert hub.HubFile.parse(text) == hub.HubFile(repository, file, revision)
    assert hub.HubFile.parse(str(hub.HubFile.parse(text))) == hub.HubFile(repository, file, revision)


@pytest.mark.parametrize(
    "text", ["hf://a", "hf://a/b", "hf://a/b/", "hf://a/b/c@", "hf://a//c", "hf://a/b/../c", "hf://"]
)
def test_what_names_no_file_is_told(text: str) -> None:
    with pytest.raises(
        geo3d.InputError, match="names no file of the Hugging Face Hub; give hf://owner/repository/file"
    ):
        hub.HubFile.parse(text)


def test_a_path_stays_what_it_is(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.pth"):
        assert hub.resolve(path) == path
        assert hub.resolve(str(path)) == path
    assert hub.absolute(Path("missing.pth")) == Path.cwd() / "missing.pth"
    assert hub.absolute(Path("hf://a/b/c")) == Path("hf:/a/b/c")


def test_a_file_of_the_cache_is_a_checkpoint(cache: Path, models: tuple[Path, Path]) -> None:
    newest = f"hf://someone/rooms/{_FILE}"
    for checkpoint in (newest, Path(newest), f"{newest}@main", f"{newest}@{_COMMITS[1]}"):
        assert _same(geo3d.create_model(checkpoint=checkpoint), models[1])
    assert _same(geo3d.create_model("croco", checkpoint=f"{newest}@v1"), models[0])
    assert _same(geo3d.load_encoder(f"{newest}@{_COMMITS[0]}", device="cpu").model, models[0])
    assert hub.resolve(newest).is_relative_to(cache)
    assert hub.resolve(newest).suffix == ".safetensors"


def test_a_run_starts_from_it(cache: Path, models: tuple[Path, Path]) -> None:
    from geo3d.methods.croco import CrossViewCompletion, CrossViewCompletionConfig
    from geo3d.recipes.croco import CroCoRun
    from geo3d.recipes.init import find_initial_weights

    reference = Path(f"hf://someone/rooms/{_FILE}@v1")
    run = CroCoRun(init=reference).resolved()
    assert run.init == reference
    method = CrossViewCompletion(CrossViewCompletionConfig())
    weights = find_initial_weights(run.init, "encoder", method)
    stored = geo3d.create_model(checkpoint=models[0]).state_dict()
    assert torch.equal(weights.taken["network.enc_norm.weight"], stored["enc_norm.weight"])


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("someone/rooms/other.pth", "not in the cache .*, and HF_HUB_OFFLINE forbids to fetch it"),
        (f"someone/rooms/{_FILE}@v2", "not in the cache .*, and HF_HUB_OFFLINE forbids to fetch it"),
        ("no one/rooms/a.pth", "'no one/rooms' is no name of a repository; give hf://owner/repository/file"),
    ],
)
def test_what_the_cache_lacks_is_told_in_a_line(cache: Path, reference: str, told: str) -> None:
    with pytest.raises(geo3d.InputError, match=f"hf://{reference.split('@')[0]}.*: {told}") as raised:
        geo3d.create_model("croco", checkpoint=f"hf://{reference}")
    assert "\n" not in str(raised.value)


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(errors.MissingExtra, match=r"hf://a/b/c: .* needs huggingface_hub: pip install 'geo3d\[hub\]'"):
        hub.resolve("hf://a/b/c")


class _Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks a hub for when it fetches a file."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        content = self._answer()
        if content is not None:
            self.wfile.write(content)

    def _answer(self) -> bytes | None:
        self.asked.append(f"{self.command} {self.path}")
        owner = self.path.split("/")[1]
        content = self.files.get(self.path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if owner == "someone" else "RepoNotFound")
            self.send_header("Content-Length", "0")
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", _COMMITS[0])
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def server(models: tuple[Path, Path]) -> Iterator[ThreadingHTTPServer]:
    """A hub on this machine that has one file."""
    handler = type(
        "Hub", (_Hub,), {"files": {f"/someone/rooms/resolve/main/{_FILE}": models[0].read_bytes()}, "asked": []}
    )
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


_FETCH = """
import json, sys
from geo3d.checkpoints import hub
from geo3d.errors import InputError
found = []
for reference in sys.argv[1:]:
    try:
        found.append(str(hub.resolve(reference)))
    except InputError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def _fetched(home: Path, endpoint: str, *references: str, **more: str) -> list[str]:
    """What becomes of references in a process that has a cache and a hub of its own."""
    environment = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"} | more
    command = [sys.executable, "-c", _FETCH, *references]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_file_is_fetched_once_and_then_found_offline(
    server: ThreadingHTTPServer, models: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("huggingface_hub")
    endpoint = f"http://127.0.0.1:{server.server_port}"
    reference = f"hf://someone/rooms/{_FILE}"
    pinned = f"{reference}@{_COMMITS[0]}"
    path, missing, nowhere, *again = _fetched(
        tmp_path, endpoint, reference, "hf://someone/rooms/none.pth@main", "hf://other/rooms/a.pth", reference, pinned
    )
    assert Path(path).is_relative_to(tmp_path)
    assert Path(path).read_bytes() == models[0].read_bytes()
    assert again == [path, path]
    assert "someone/rooms has no file none.pth of revision main; see the list of its files on its page" in missing
    assert "there is no such repository, or it is private" in nowhere
    asked = [line for line in server.RequestHandlerClass.asked if "/resolve/" in line]
    assert sum(line.startswith("GET") and line.endswith(_FILE) for line in asked) == 1
    assert not [line for line in asked if _COMMITS[0] in line]  # a commit never changes: nothing is asked
    server.RequestHandlerClass.asked.clear()
    assert _fetched(tmp_path, endpoint, reference, pinned, HF_HUB_OFFLINE="1") == [path, path]
    assert server.RequestHandlerClass.asked == []
