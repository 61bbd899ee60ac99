"""A server of the Hub's protocol on loopback, as far as pushing and loading need it; everything is kept in memory.

with HubServer() as server:
    HfApi(endpoint=server.url, token=TOKEN).create_repo("me/tiny")
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import unquote

from huggingface_hub import DatasetCard, ModelCard
from yaml import YAMLError


TOKEN = "hf_" + "a" * 34
KIND = r"(?P<kind>models|datasets)"
REPO = r"(?P<name>[\w.-]+/[\w.-]+)"


class Commit(dict):
    """Every file of one revision, by path."""

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((id(self), sorted(self.items()))).encode()).hexdigest()


class HubServer(ThreadingHTTPServer):
    """
    commits: the revisions of each repository, by `("models", "me/tiny")`.
    received: how many bytes of each file were sent to it.
    break_at: a pattern of `METHOD path`; such a request is cut off without a reply.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.commits: dict[tuple[str, str], list[Commit]] = {}
        self.objects: dict[str, bytes] = {}  # large files, by SHA-256
        self.received: Counter[str] = Counter()
        self.break_at: str | None = None

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.shutdown()
        self.server_close()

    def files(self, name: str, kind: str = "models") -> Commit:
        return self.commits[kind, name][-1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments):
        pass

    def answer(self, body=b"", status=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code=None, message=""):
        headers = {"X_Error_Message": message or code or status} | ({"X_Error_Code": code} if code else {})
        self.answer({"error": message or code}, status, **headers)

    def do_GET(self):
        path = unquote(self.path).partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.break_at and re.search(self.server.break_at, f"{self.command} {path}"):
            self.close_connection = True
            return
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command.replace('HEAD', 'GET')} {path}"):
                fields = match.groupdict()
                needs_token = self.command == "POST" or "whoami" in path
                if needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.refuse(401, message="Invalid username or password.")
                if "name" in fields:
                    self.commits = self.server.commits.get(((fields.get("kind") or "models"), fields["name"]))
                    if self.commits is None:
                        return self.refuse(404, "RepoNotFound")
                    revision = fields.get("revision") or "main"
                    at = [commit for commit in self.commits if revision in ("main", commit.sha)]
                    if not at:
                        return self.refuse(404, "RevisionNotFound")
                    self.commit = at[-1]
                return method(self, body, fields)
        self.refuse(404)

    do_HEAD = do_POST = do_PUT = do_GET

    def whoami(self, body, fields):
        self.answer({"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self, body, fields):
        asked = json.loads(body)
        try:
            (DatasetCard if asked["repoType"] == "dataset" else ModelCard)(asked["content"])
            errors = []
        except (ValueError, YAMLError) as error:
            errors = [{"message": str(error)}]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self, body, fields):
        asked = json.loads(body)
        key = (f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or 'me'}/{asked['name']}")
        url = f"{self.server.url}/{'datasets/' * (key[0] == 'datasets')}{key[1]}"
        if key in self.server.commits:
            return self.answer({"error": "You already created this repo", "url": url}, 409)
        self.server.commits[key] = [Commit({".gitattributes": b"*.safetensors filter=lfs\n"})]
        self.answer({"url": url, "name": key[1]})

    def info(self, body, fields):
        siblings = [{"rfilename": name} for name in self.commit]
        self.answer({"id": fields["name"], "sha": self.commit.sha, "siblings": siblings, "private": False})

    def tree(self, body, fields):
        folder = fields["folder"].strip("/")
        below = folder + "/" if folder else ""
        names = {name for name in self.commit if name.startswith(below)}
        if folder and not names:
            return self.refuse(404, "EntryNotFound")
        names |= {str(parent) for name in names for parent in PurePosixPath(name).parents} - {".", folder}
        if "recursive=true" not in self.path.lower():
            names = {name for name in names if "/" not in name.removeprefix(below)}
        self.answer([self.entry(name) for name in sorted(names)])

    def paths_info(self, body, fields):
        names = {str(parent) for name in self.commit for parent in PurePosixPath(name).parents} | set(self.commit)
        self.answer([self.entry(name) for name in json.loads(body)["paths"] if name in names])

    def entry(self, name):
        content = self.commit.get(name)
        if content is None:
            return {"type": "directory", "path": name, "oid": "0" * 40}
        return {"type": "file", "path": name, "size": len(content), "oid": _git_oid(content)}

    def preupload(self, body, fields):
        files = []
        for file in json.loads(body)["files"]:
            large = bool(re.search(r"\.(safetensors|gguf|parquet)$", file["path"]))
            there = self.commit.get(file["path"])
            oid = there and (hashlib.sha256(there).hexdigest() if large else _git_oid(there))
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": files})

    def lfs_batch(self, body, fields):
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.objects:
                item["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, body, fields):
        assert hashlib.sha256(body).hexdigest() == fields["oid"]
        self.server.objects[fields["oid"]] = body
        self.answer()

    def post_commit(self, body, fields):
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit", self.commit.sha) != self.commit.sha:
            return self.refuse(412, message="The repository has changed since.")
        files = dict(self.commit)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del files[value["path"]]
                continue
            lfs = operation["key"] == "lfsFile"
            content = self.server.objects[value["oid"]] if lfs else base64.b64decode(value["content"])
            files[value["path"]] = content
            self.server.received[value["path"]] += len(content)
        self.commits.append(Commit(files))
        url = f"{self.server.url}/{fields['name']}/commit/{self.commits[-1].sha}"
        self.answer({"success": True, "commitOid": self.commits[-1].sha, "commitUrl": url})

    def resolve(self, body, fields):
        content = self.commit.get(fields["path"])
        if content is None:
            return self.refuse(404, "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest()
        self.answer(content, ETag=f'"{etag}"', X_Repo_Commit=self.commit.sha, Accept_Ranges="bytes")


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/validate-yaml", Handler.validate_yaml),
    (r"POST /api/repos/create", Handler.create),
    (rf"GET /api/{KIND}/{REPO}(/revision/(?P<revision>[^/]+))?", Handler.info),
    (rf"GET /api/{KIND}/{REPO}/tree/(?P<revision>[^/]+)(?P<folder>.*)", Handler.tree),
    (rf"POST /api/{KIND}/{REPO}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    (rf"POST /api/{KIND}/{REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (rf"POST /api/{KIND}/{REPO}/commit/(?P<revision>[^/]+)", Handler.post_commit),
    (rf"POST /((?P<kind>datasets)/)?{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>\w+)", Handler.lfs_put),
    (rf"GET /((?P<kind>datasets)/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]
