"""The two hubs' HTTP protocols as pure functions from a request and the shelf to a reply.

Called by ``tests.support.hub``, which owns the socket, ranges and faults. Paths, headers and status codes are
what huggingface_hub 2.4 and modelscope_hub 0.5.1 ask for and act on. huggingface.co answers 401 to a stranger
without a token whether the repository is missing or private, and 404 once a valid token was sent. ModelScope's
numeric ``Code`` values for private repositories are ours: its client only looks at the HTTP status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, unquote

from tests.support.hub_repositories import HubFile, Repository, Shelf, Snapshot

#: The token of someone who may read everything.
OWNER_TOKEN: Final = "token-of-the-owner"
#: A valid token of someone who may read neither private nor gated repositories.
STRANGER_TOKEN: Final = "token-of-a-stranger"

_NAME: Final = r"(?P<name>[^/]+(?:/[^/]+)?)"
_HF_INFO: Final = re.compile(rf"/api/models/{_NAME}(?:/revision/(?P<revision>[^/]+))?")
_HF_TREE: Final = re.compile(rf"/api/models/{_NAME}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
_HF_RESOLVE: Final = re.compile(rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_HF_LFS: Final = re.compile(rf"/lfs/{_NAME}/-/(?P<revision>[^/]+)/(?P<path>.+)")
_MS_MODEL: Final = re.compile(r"/api/v1/models/(?P<name>[^/]+/[^/]+)(?P<rest>|/revisions|/repo|/repo/files)")


@dataclass(frozen=True, slots=True)
class Request:
    """What a protocol needs to know. ``path`` is still percent-encoded; ``token`` is ``None`` when none was sent."""

    path: str
    query: Mapping[str, str]
    token: str | None


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send. ``file`` stands for a body to which ranges and faults apply, ``repository`` is its home."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: HubFile | None = None
    repository: str = ""


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> Reply:
    head = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Reply(status, head, json.dumps(value, ensure_ascii=False).encode())


# --- Hugging Face -----------------------------------------------------------------------------------------


def _hf_error(status: int, message: str, code: str | None = None) -> Reply:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return _json(status, {"error": message}, headers)


def _hf_denied(request: Request, repository: Repository | None, *, wants_content: bool) -> Reply | None:
    """What huggingface.co says to someone who may not have what was asked for, or ``None``.

    Information on a gated repository is public, its files are not.
    """
    if request.token is not None and request.token not in (OWNER_TOKEN, STRANGER_TOKEN):
        return _hf_error(401, "Invalid credentials in Authorization header")
    if repository is None or (repository.access == "private" and request.token != OWNER_TOKEN):
        if request.token is None:
            # On https the client takes a bare 401 for this; on plain http it needs to be told.
            return _hf_error(401, "Invalid username or password.", "RepoNotFound")
        return _hf_error(404, "Repository not found", "RepoNotFound")
    if repository.access == "gated" and wants_content and request.token != OWNER_TOKEN:
        status = 401 if request.token is None else 403
        return _hf_error(status, f"Access to model {repository.name} is restricted.", "GatedRepo")
    return None


def _hf_info(repository: Repository, snapshot: Snapshot) -> Reply:
    return _json(
        200,
        {
            "_id": snapshot.commit[:24],
            "id": repository.name,
            "modelId": repository.name,
            "sha": snapshot.commit,
            "private": repository.access == "private",
            "gated": "auto" if repository.access == "gated" else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [{"rfilename": path} for path in snapshot.files],
        },
    )


def _hf_tree_entry(file: HubFile) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "oid": file.blob_id,
        "size": len(file.content),
        "path": file.path,
    }
    if file.is_lfs:
        pointer_size = len(file.lfs_pointer)
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": pointer_size}
    return entry


def _hf_tree(snapshot: Snapshot, folder: str, *, recursive: bool) -> Reply:
    prefix = f"{folder.strip('/')}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in snapshot.files.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        depth = len(parts) if recursive else min(len(parts), 2)
        for length in range(1, depth):
            parent = prefix + "/".join(parts[:length])
            entries.setdefault(
                parent, {"type": "directory", "oid": HubFile.of(parent, b"").git_sha1, "size": 0, "path": parent}
            )
        if recursive or len(parts) == 1:
            entries[path] = _hf_tree_entry(file)
    if prefix and not entries:
        return _hf_error(404, f"{folder} does not exist", "EntryNotFound")
    return _json(200, list(entries.values()))


def _hf_file(repository: Repository, snapshot: Snapshot, path: str, elsewhere: str) -> Reply:
    headers = {"X-Repo-Commit": snapshot.commit, "Accept-Ranges": "bytes"}
    file = snapshot.files.get(path)
    if file is None:
        missing = _hf_error(404, "Entry not found", "EntryNotFound")
        return Reply(404, missing.headers | headers, missing.body)
    headers["ETag"] = f'"{file.etag}"'
    if not file.is_lfs:
        return Reply(200, headers, file=file, repository=repository.name)
    # The true hub sends clients to its storage for large files: another host, which must not see the token.
    headers["X-Linked-Size"] = str(len(file.content))
    headers["X-Linked-ETag"] = f'"{file.sha256}"'
    headers["Location"] = f"{elsewhere}/lfs/{repository.name}/-/{snapshot.commit}/{quote(path)}"
    return Reply(302, headers)


def _hf_storage(shelf: Shelf, match: re.Match[str]) -> Reply:
    repository = shelf.find(match["name"], "huggingface")
    snapshot = repository.at(match["revision"]) if repository else None
    file = snapshot.files.get(unquote(match["path"])) if snapshot else None
    if repository is None or file is None:
        return Reply(403)
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{file.sha256}"'}
    return Reply(200, headers, file=file, repository=repository.name)


def huggingface(request: Request, shelf: Shelf, elsewhere: str) -> Reply:
    """Answer as huggingface.co does. ``elsewhere`` is this same hub under another host name."""
    if match := _HF_LFS.fullmatch(request.path):
        return _hf_storage(shelf, match)
    resolve = _HF_RESOLVE.fullmatch(request.path)
    tree = _HF_TREE.fullmatch(request.path)
    match = resolve or tree or _HF_INFO.fullmatch(request.path)
    if match is None:
        return _hf_error(404, "Sorry, we can't find the page you are looking for.")
    repository = shelf.find(match["name"], "huggingface")
    denied = _hf_denied(request, repository, wants_content=resolve is not None)
    if denied is not None:
        return denied
    assert repository is not None
    snapshot = repository.at(unquote(match["revision"] or "main"))
    if snapshot is None:
        reply = _hf_error(404, f"Invalid rev id: {match['revision']}", "RevisionNotFound")
    elif resolve:
        reply = _hf_file(repository, snapshot, unquote(match["path"]), elsewhere)
    elif tree:
        recursive = request.query.get("recursive", "").lower() in ("true", "1")
        reply = _hf_tree(snapshot, unquote(match["path"] or ""), recursive=recursive)
    else:
        reply = _hf_info(repository, snapshot)
    return reply


# --- ModelScope -------------------------------------------------------------------------------------------


def _ms_answer(data: object) -> Reply:
    return _json(200, {"Code": 200, "Data": data, "Message": "success", "RequestId": "loopback", "Success": True})


def _ms_error(status: int, code: int, message: str) -> Reply:
    return _json(status, {"Code": code, "Message": message, "RequestId": "loopback", "Success": False})


def _ms_denied(request: Request, repository: Repository | None) -> Reply | None:
    if request.token is not None and request.token not in (OWNER_TOKEN, STRANGER_TOKEN):
        return _ms_error(401, 10010103009, "AccessToken is invalid or expired")
    if repository is None:
        return _ms_error(404, 10010205001, "Record Not Found")
    if repository.access != "public" and request.token != OWNER_TOKEN:
        if request.token is None:
            return _ms_error(401, 10990101401, "user not logged in")
        return _ms_error(403, 10990101403, "access denied")
    return None


def _ms_entries(snapshot: Snapshot, *, recursive: bool, root: str) -> list[dict[str, Any]]:
    prefix = f"{root.strip('/')}/" if root.strip("/") else ""
    folders: dict[str, None] = {}
    blobs = []
    for path, file in snapshot.files.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for length in range(1, len(parts) if recursive else min(len(parts), 2)):
            folders[prefix + "/".join(parts[:length])] = None
        if recursive or len(parts) == 1:
            blob = {"Path": path, "Name": parts[-1], "Type": "blob", "Size": len(file.content)}
            blobs.append(blob | {"Sha256": file.sha256, "IsLFS": file.is_lfs, "Revision": snapshot.commit})
    trees = [{"Path": path, "Name": path.rpartition("/")[2], "Type": "tree", "Size": 0} for path in folders]
    return trees + blobs


def _ms_revisions(repository: Repository) -> Reply:
    names = ["master" if name == "main" else name for name in repository.revisions]
    branches = [{"Revision": name} for name in names if name == "master"]
    tags = [{"Revision": name} for name in names if name != "master"]
    return _ms_answer({"RevisionMap": {"Branches": branches, "Tags": tags}})


def _ms_file(repository: Repository, snapshot: Snapshot, path: str) -> Reply:
    file = snapshot.files.get(path)
    if file is None:
        return _ms_error(404, 10010204404, "the file does not exist")
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{file.sha256}"'}
    return Reply(200, headers, file=file, repository=repository.name)


def _ms_info(repository: Repository) -> Reply:
    owner, _, name = repository.name.partition("/")
    return _ms_answer({"Path": owner, "Name": name, "Visibility": 5 if repository.access == "public" else 1})


def modelscope(request: Request, shelf: Shelf) -> Reply:
    """Answer as modelscope.cn does below ``/api/v1``."""
    if request.path == "/api/v1/repos/internalAccelerationInfo":
        return _ms_answer({"InternalRegionQueryAddress": ""})
    match = _MS_MODEL.fullmatch(request.path)
    if match is None:
        return _ms_error(404, 404, "no such route")
    repository = shelf.find(unquote(match["name"]), "modelscope")
    denied = _ms_denied(request, repository)
    if denied is not None:
        return denied
    assert repository is not None
    snapshot = repository.at(request.query.get("Revision", "master"))
    if match["rest"] == "/revisions":
        reply = _ms_revisions(repository)
    elif match["rest"] == "":
        reply = _ms_info(repository)
    elif snapshot is None:
        reply = _ms_error(404, 10010204002, "the revision does not exist")
    elif match["rest"] == "/repo/files":
        recursive = request.query.get("Recursive", "").lower() == "true"
        entries = _ms_entries(snapshot, recursive=recursive, root=request.query.get("Root", ""))
        reply = _ms_answer({"Files": entries})
    else:
        reply = _ms_file(repository, snapshot, request.query.get("FilePath", ""))
    return reply
