"""Where a published encoder lies: in a folder, in this package, or on the Hugging Face Hub.

`hf:OWNER/NAME` and `hf:OWNER/NAME@REVISION` are read over HTTPS, and only because somebody wrote them. Two
files are fetched, config.json and model.safetensors; neither can run code. The first holds size and SHA-256
of the second, so that a copy is whole or is refused. Copies lie in `$SIMCLR_CACHE/hub/HOST`, else in
~/.cache/simclr_jax/hub/HOST; without a network they are used as they are.

Environment: HF_ENDPOINT (https://huggingface.co), HF_TOKEN (for private repositories), HF_HUB_OFFLINE=1 (the
network is never asked), SIMCLR_CACHE.
"""

import contextlib
import functools
import hashlib
import http.client
import json
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from etils import epath

from simclr_jax import storage
from simclr_jax.errors import SimclrError, one_line
from simclr_jax.version import __version__

CONFIG_FILE, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MODEL_TYPE = "simclr"  # in config.json, as the Hub's tools ask for it
SHIPPED = Path(__file__).parent / "encoders"  # builtin:NAME
HUB, BUILTIN = "hf:", "builtin:"
ENDPOINT = "https://huggingface.co"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TIMEOUT = 60.0  # seconds without a byte
MOST_CONFIG = 4 << 20  # bytes of a config.json
CHUNK, LONG = 1 << 20, 10 << 20  # bytes at a time; from LONG on a bar is shown
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
SPEC = re.compile(rf"hf:({NAME})/({NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")
SHA256 = re.compile("[0-9a-f]{64}")


class Unreachable(Exception):  # noqa: N818 - not an end: a copy may be there
    """The network or the server does not answer."""


class Weights(NamedTuple):
    """What config.json says of model.safetensors."""

    bytes: int
    sha256: str


def is_named(workdir: epath.PathLike) -> bool:
    """Whether it is `hf:...` or `builtin:...`, and no path."""
    return os.fspath(workdir).startswith((HUB, BUILTIN))


def local(workdir: epath.PathLike) -> epath.PathLike:
    """The folder of `hf:OWNER/NAME[@REVISION]`, fetched where it is not there yet, or of `builtin:NAME`.

    Any other path is returned as it is. In one process a name always leads to the same folder.

    Raises:
      SimclrError: there is none, or it cannot be fetched.
      StorageError: the copy cannot be written.
    """
    text = os.fspath(workdir)
    if text.startswith(BUILTIN):
        return _shipped(text)
    if not text.startswith(HUB):
        return workdir
    return _fetched(text, os.environ.get("HF_ENDPOINT") or ENDPOINT, cache())


def cache() -> Path:
    """The folder of the copies."""
    return Path(os.environ.get("SIMCLR_CACHE") or "~/.cache/simclr_jax").expanduser().absolute() / "hub"


def _shipped(text: str) -> Path:
    names = sorted(path.name for path in SHIPPED.iterdir())
    name = text.removeprefix(BUILTIN)
    if name not in names:
        raise SimclrError(
            f"{text}: no encoder of that name ships with simclr_jax; there is {', '.join(names)}"
        )
    return SHIPPED / name


def facts(text: str | bytes, where: object) -> dict[str, Any]:
    """What the config.json of a published folder says.

    Raises:
      SimclrError: it is not one that `simclr publish` wrote.
    """
    found: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
    ours = isinstance(found, dict) and found.get("model_type") == MODEL_TYPE
    if not ours or weights(found) is None or type(found.get("step")) is not int:
        raise SimclrError(
            f"{where}: its {CONFIG_FILE} is not one of simclr publish; no encoder of ours is there"
        )
    return found


def weights(found: Mapping[str, Any]) -> Weights | None:
    """Size and digest of model.safetensors; None where config.json says none."""
    said = found.get("weights")
    size, digest = (said.get("bytes"), said.get("sha256")) if isinstance(said, dict) else (None, None)
    if type(size) is not int or size <= 0 or not SHA256.fullmatch(str(digest)):
        return None
    return Weights(size, str(digest))


# ---- fetching -------------------------------------------------------------------------------------


def parse(text: str) -> tuple[str, str, str]:
    """(owner, name, revision) of `hf:OWNER/NAME[@REVISION]`.

    Raises:
      SimclrError: it is none; neither part may lead out of its folder.
    """
    match = SPEC.fullmatch(text)
    if match is None or ".." in text:
        raise SimclrError(f"{text!r}: must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    return match[1], match[2], match[3] or "main"


@functools.lru_cache(maxsize=64)
def _fetched(text: str, endpoint: str, top: Path) -> Path:
    owner, name, revision = parse(text)
    # One folder for each Hub: what a mirror gave must not stand in for the Hub itself.
    home = top / quote(urlsplit(_checked(endpoint)).netloc.rpartition("@")[2], safe="") / owner / name
    known = home / "refs" / quote(revision, safe="")  # names the copy that this revision last was
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise Unreachable("HF_HUB_OFFLINE is set")
        hub = _Repository(text, f"{endpoint.rstrip('/')}/{owner}/{name}/resolve")
        config, commit = hub.config(revision)
        said = facts(config, text)
        # A copy is named by its config.json, which names the weights.
        key = hashlib.sha256(config).hexdigest()[:40]
        if not _whole(home / key):
            with storage.writing(home):
                hub.download(home / key, config, commit or revision, said)
    except Unreachable as error:
        folder = home / known.read_text() if known.is_file() else None
        if folder is None or not _whole(folder):
            raise SimclrError(f"{text}: {error}, and no copy of it is in {home}") from None
        print(f"note: {text}: {error}; taking the copy in {folder}")
        return folder
    with storage.writing(known):
        known.parent.mkdir(parents=True, exist_ok=True)
        half = known.with_name(f"{known.name}.{os.getpid()}.tmp")
        half.write_text(key)
        half.replace(known)
    return home / key


def _whole(folder: Path) -> bool:
    """Whether a copy is there, as long as its config.json says; its digest is compared when it is read."""
    try:
        said = weights(json.loads((folder / CONFIG_FILE).read_bytes()))
        return said is not None and (folder / WEIGHTS).stat().st_size == said.bytes
    except (OSError, ValueError):
        return False


def _checked(url: str) -> str:
    """The URL, where it is HTTPS, or HTTP on this machine: a token and weights travel by it.

    Raises:
      SimclrError: it is another.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise SimclrError(f"{url}: must begin with https://; HF_ENDPOINT says where the Hub is")
    return url


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows the Hub to its store; keeps what the Hub said on the way; shows the store no token."""

    def __init__(self):
        self.said: dict[str, str] = {}

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        self.said |= {key.lower(): value for key, value in headers.items()}
        new = super().redirect_request(req, fp, code, msg, headers, _checked(newurl))
        token = req.get_header("Authorization")
        if new is not None and token and urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]:
            new.add_unredirected_header("Authorization", token)
        return new


class _Repository:
    """A repository of the Hub.

    Args:
      name: as the user wrote it, for errors; url: of its files, up to the revision.
    """

    def __init__(self, name: str, url: str):
        self.name, self.url = name, url

    def config(self, revision: str) -> tuple[bytes, str]:
        """(config.json, the commit that the revision is, "" where the server does not say)."""
        response, said = self._open(revision, CONFIG_FILE)
        with response:
            content = self._read(response, MOST_CONFIG + 1)
        if len(content) > MOST_CONFIG:
            raise SimclrError(f"{self.name}: its {CONFIG_FILE} is longer than {storage.told(MOST_CONFIG)}")
        commit = said.get("x-repo-commit", "")
        return content, commit if re.fullmatch("[0-9a-f]{40}", commit) else ""

    def download(self, folder: Path, config: bytes, revision: str, found: Mapping[str, Any]) -> None:
        """Makes `folder` of both files as a whole; another process may make it at any moment."""
        wanted = weights(found)
        assert wanted is not None  # by `facts`
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as top:
            half = Path(top) / folder.name
            half.mkdir()
            self._weights(half / WEIGHTS, revision, wanted)
            (half / CONFIG_FILE).write_bytes(config)
            if folder.exists() and not _whole(folder):
                folder.rename(Path(top) / "damaged")
            try:
                half.rename(folder)
            except OSError:
                if not _whole(folder):
                    raise

    def _weights(self, path: Path, revision: str, wanted: Weights) -> None:
        """Writes model.safetensors; stops at once where the server names another file."""
        response, said = self._open(revision, WEIGHTS)
        with response, path.open("wb") as file:
            etag = said.get("x-linked-etag", "").removeprefix("W/").strip('"')
            size = said.get("x-linked-size") or response.headers.get("Content-Length") or wanted.bytes
            other = SHA256.fullmatch(etag) and etag != wanted.sha256
            if other or str(size) != str(wanted.bytes):
                raise SimclrError(
                    f"{self.name}: its {WEIGHTS} is not the one of its {CONFIG_FILE}; publish it anew"
                )
            digest, count = hashlib.sha256(), 0
            with _bar(wanted.bytes, self.name) as bar:
                while count <= wanted.bytes and (part := self._read(response, CHUNK)):
                    file.write(part)
                    digest.update(part)
                    count += len(part)
                    bar.update(len(part))
        if count < wanted.bytes:
            raise Unreachable(f"{WEIGHTS} ends after {count:,} of {wanted.bytes:,} bytes")
        if count > wanted.bytes or digest.hexdigest() != wanted.sha256:
            raise SimclrError(f"{self.name}: {WEIGHTS} is not the one of its {CONFIG_FILE}; try again")

    def _open(self, revision: str, file: str) -> tuple[Any, dict[str, str]]:
        """(response, headers of it and of what led there)."""
        request = urllib.request.Request(f"{self.url}/{quote(revision, safe='')}/{file}")
        request.add_header("User-Agent", f"simclr_jax/{__version__}")
        if token := os.environ.get("HF_TOKEN", "").strip():
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        redirects = _Redirects()
        try:
            response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._refused(error.code, revision, file) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{urlsplit(self.url).netloc} cannot be reached ({_reason(error)})") from None
        return response, {**{k.lower(): v for k, v in response.headers.items()}, **redirects.said}

    def _refused(self, code: int, revision: str, file: str) -> Exception:
        if code == 404:
            return SimclrError(
                f"{self.name}: no {file} there at {revision} (HTTP 404): see owner, name, revision"
            )
        if code in (401, 403):
            return SimclrError(
                f"{self.name}: not there, or private (HTTP {code}): set HF_TOKEN to a token that may read it"
            )
        return Unreachable(f"{urlsplit(self.url).netloc} answers with HTTP {code}")

    def _read(self, response: Any, size: int) -> bytes:
        try:
            return response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the connection broke ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    return one_line(error.reason if isinstance(error, urllib.error.URLError) else error)  # pyright: ignore


def _bar(total: int, name: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=None if total > LONG else True)
