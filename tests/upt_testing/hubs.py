"""A Hub on loopback: ``olah``, a real mirror, over git repositories, and who writes into those.

Everything that is read comes from olah, unchanged. No mirror takes what is written, so that part of
the Hub's API is here, as far as huggingface-hub calls it: repositories, the large files of the LFS
batch API, commits and tags end up in the git repositories that olah serves.
"""

import base64
import hashlib
import http.client
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest
import yaml

from upt_testing.registries import free_port, need, wait_for

VENV = Path(os.environ.get("HUB_VENV", ".venv-hub"))
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "tests"), ("EMAIL", "tests@localhost"))
}
Answer = tuple[int, object]


class GitRepository:
    """A git repository as olah reads it: objects, branches, tags, and LFS objects as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def git(self, *arguments: str, stdin: bytes = b"", index: Path | None = None) -> str:
        extra = {"GIT_INDEX_FILE": str(index)} if index else {}
        done = subprocess.run(
            ["git", "-C", str(self.folder), *arguments],
            input=stdin,
            capture_output=True,
            check=True,
            env={**os.environ, **IDENTITY, **extra},
        )
        return done.stdout.decode().strip()

    def create(self) -> None:
        self.folder.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit("Initial commit", {".gitattributes": ATTRIBUTES.encode()})

    def resolve(self, name: str) -> str | None:
        try:
            return self.git("rev-parse", "--verify", "--quiet", name)
        except subprocess.CalledProcessError:
            return None

    def lfs_file(self, oid: str) -> Path:
        return self.folder / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid

    def commit(self, message: str, files: dict[str, bytes | None], branch: str = "main") -> str:
        """Commit files onto a branch; None deletes one."""
        index, parent = self.folder / ".git" / "index.tests", self.resolve(f"refs/heads/{branch}")
        index.unlink(missing_ok=True)
        if parent:
            self.git("read-tree", parent, index=index)
        for path, data in files.items():
            if data is None:
                self.git("update-index", "--force-remove", path, index=index)
                continue
            blob = self.git("hash-object", "-w", "--stdin", stdin=data)
            entry = f"100644,{blob},{path}"
            self.git("update-index", "--add", "--cacheinfo", entry, index=index)
        tree = self.git("write-tree", index=index)
        parents = ("-p", parent) if parent else ()
        commit = self.git("commit-tree", tree, "-m", message, *parents)
        self.git("update-ref", f"refs/heads/{branch}", commit, parent or "")
        return commit

    def read(self, path: str, revision: str = "main") -> bytes:
        """Return a file, a large one too."""
        data = self.kept(path, revision)
        oid = large_oid(data)
        return self.lfs_file(oid).read_bytes() if oid else data

    def kept(self, path: str, revision: str) -> bytes:
        """Return what git has of a file: of a large one a pointer."""
        return subprocess.run(
            ["git", "-C", str(self.folder), "show", f"{revision}:{path}"],
            capture_output=True,
            check=True,
        ).stdout

    def oids(self, revision: str) -> dict[str, str]:
        """Return the files' oids as the Hub gives them: git's, but of large ones the sha256."""
        entries = self.git("ls-tree", "-r", revision).splitlines()
        oids = {path: entry.split()[2] for entry, path in (each.split("\t") for each in entries)}
        large = {path: large_oid(self.kept(path, revision)) for path in oids if is_large(path)}
        return oids | {path: oid for path, oid in large.items() if oid}

    def files(self, revision: str = "main") -> set[str]:
        return set(self.git("ls-tree", "-r", "--name-only", revision).split())


@dataclass
class Hub:
    """A running Hub; with ``token``, only its owner may do anything."""

    endpoint: str
    folder: Path
    token: str | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    user_agents: set[str] = field(default_factory=set)
    before: dict[str, Callable[[], None]] = field(default_factory=dict)

    def repository(self, name: str) -> GitRepository:
        return GitRepository(self.folder / "models" / name)

    def call_before(self, path: str) -> None:
        """Do, once, what a test wants done before a call: ``before`` has it by the call's name."""
        match path.strip("/").split("/"):
            case ["api", "models", _, _, what, *_]:
                self.before.pop(what, lambda: None)()


class Handler(BaseHTTPRequestHandler):
    """Answers what is written, and hands on to olah what is read."""

    server: "Front"
    protocol_version = "HTTP/1.1"

    def do(self) -> None:
        hub, path = self.server.hub, unquote(self.path.partition("?")[0])
        hub.requests.append((self.command, path))
        hub.user_agents.add(self.headers["User-Agent"] or "")
        size = int(self.headers["Content-Length"] or 0)
        content = self.rfile.read(size)
        if len(content) < size:  # the client has left
            self.close_connection = True
            return
        is_known = self.headers["Authorization"] == f"Bearer {hub.token}"
        if hub.token and not is_known and not path.startswith("/lfs/"):  # the Hub signs those
            self.answer(401, {"error": "Invalid username or password."})
            return
        hub.call_before(path)
        if self.command in ("GET", "HEAD"):
            self.forward()
        else:
            self.answer(*self.write(path.strip("/").split("/"), content))

    do_GET = do_HEAD = do_POST = do_PUT = do

    def write(self, parts: list[str], content: bytes) -> Answer:
        match parts:
            case ["api", "validate-yaml"]:
                return validate(json.loads(content)["content"])
            case ["api", "repos", "create"]:
                return self.create(json.loads(content))
            case ["api", "models", owner, name, what, revision]:
                repository = self.server.hub.repository(f"{owner}/{name}")
                if not repository.folder.exists():
                    return 404, {"error": "Repository not found"}
                return WRITES[what](repository, revision, content)
            case [owner, name, "info", "lfs", "objects", "batch"]:
                return self.batch(f"{owner}/{name.removesuffix('.git')}", json.loads(content))
            case ["lfs", owner, name, oid]:
                return keep(self.server.hub.repository(f"{owner}/{name}").lfs_file(oid), content)
        return 404, {"error": "no such call"}

    def create(self, asked: dict[str, str]) -> Answer:
        repository = f"{asked['organization']}/{asked['name']}"
        if self.server.hub.repository(repository).folder.exists():
            return 409, {"error": "You already created this model repo"}
        self.server.hub.repository(repository).create()
        return 200, {"url": f"{self.server.hub.endpoint}/{repository}"}

    def batch(self, name: str, asked: dict[str, list[dict[str, object]]]) -> Answer:
        objects: list[dict[str, object]] = []
        for each in asked["objects"]:
            file = self.server.hub.repository(name).lfs_file(str(each["oid"]))
            href = f"{self.server.hub.endpoint}/lfs/{name}/{each['oid']}"
            objects.append({**each, **({} if file.exists() else {"actions": upload(href)})})
        return 200, {"transfer": "basic", "objects": objects}

    def forward(self) -> None:
        headers = {key: value for key, value in self.headers.items() if key != "Host"}
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.mirror_port)) as mirror:
            mirror.request(self.command, self.path, headers=headers)
            response = mirror.getresponse()
            body = response.read()
        self.send_response(response.status)
        for key, value in response.getheaders():
            if key.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(key, value)
        size = response.headers["Content-Length"] if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        self.wfile.write(body)

    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Front(ThreadingHTTPServer):
    """The Hub's one address."""

    daemon_threads = True

    def __init__(self, folder: Path, mirror_port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mirror_port = mirror_port
        self.hub = Hub(endpoint=f"http://127.0.0.1:{self.server_address[1]}", folder=folder)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave, and calls that a test breaks off, are no news."""


def validate(page: str) -> Answer:
    """Refuse a page whose front matter is not YAML with a licence."""
    try:
        metadata = yaml.safe_load(page.split("---\n")[1])
        assert metadata["license"]
    except (yaml.YAMLError, LookupError, TypeError, AssertionError) as error:
        return 400, {"errors": [{"message": repr(error)}], "warnings": []}
    return 200, {"errors": [], "warnings": []}


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def large_oid(data: bytes) -> str | None:
    """Return the sha256 in the pointer to a large file; None if it is no pointer."""
    found = re.match(rb"version https://git-lfs\S*\noid sha256:([0-9a-f]{64})\n", data)
    return found[1].decode() if found else None


def preupload(repository: GitRepository, revision: str, content: bytes) -> Answer:
    oids = repository.oids(revision)
    files = [
        {
            "path": each["path"],
            "uploadMode": "lfs" if is_large(each["path"]) else "regular",
            "shouldIgnore": False,
            "oid": oids.get(each["path"]),
        }
        for each in json.loads(content)["files"]
    ]
    return 200, {"files": files}


def commit(repository: GitRepository, revision: str, content: bytes) -> Answer:
    header, *operations = [json.loads(line) for line in content.splitlines()]
    if header["value"].get("parentCommit") not in (None, repository.resolve(revision)):
        return 412, {"error": "The branch has moved"}
    files: dict[str, bytes | None] = {}
    for each in operations:
        value = each["value"]
        match each["key"]:
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                assert repository.lfs_file(value["oid"]).stat().st_size == value["size"]
                files[value["path"]] = POINTER.format(**value).encode()
            case "deletedFile":
                files[value["path"]] = None
    made = repository.commit(header["value"]["summary"], files, revision)
    return 200, {"commitUrl": f"commit/{made}", "commitOid": made}


def tag(repository: GitRepository, revision: str, content: bytes) -> Answer:
    name = json.loads(content)["tag"]
    if repository.resolve(f"refs/tags/{name}"):
        return 409, {"error": "Tag already exists"}
    repository.git("tag", name, revision)
    return 200, {}


def upload(href: str) -> dict[str, object]:
    return {"upload": {"href": href, "header": {}}}


def keep(file: Path, content: bytes) -> Answer:
    if hashlib.sha256(content).hexdigest() != file.name:
        return 400, {"error": "wrong oid"}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return 200, {}


WRITES = {"preupload": preupload, "commit": commit, "tag": tag}


@contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """Run a Hub until the context ends; it keeps its repositories in ``folder``."""
    need("git")
    program = VENV / "bin" / "olah-cli"
    if not program.exists():
        pytest.skip("no environment of the Hub's mirror; `make test` makes one")
    port, log = free_port(), folder / "log"
    (folder / "models").mkdir(parents=True)
    (folder / "olah.toml").write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{folder}/cache"\n'
        f'mirrors-path = ["{folder}"]\n\n[accessibility]\noffline = true\n'
    )
    command = [str(program.absolute()), "-c", str(folder / "olah.toml")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-path", str(folder / "logs")]
    with log.open("wb") as output:
        mirror = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
        front = Front(folder, port)
        thread = Thread(target=front.serve_forever)
        thread.start()
        try:
            wait_for(port, mirror, log)
            yield front.hub
        finally:
            front.shutdown()
            thread.join()
            front.server_close()
            mirror.terminate()
            mirror.wait(timeout=30)
