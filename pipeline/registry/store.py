"""The registry: every published bundle of a stream, and the pointer that names its champion.

    <root>/<stream>/<digest>/              a bundle, never changed once it is there
    <root>/<stream>/champion.json          the pointer: one small file, replaced as a whole
    <root>/<stream>/history/<revision>.json  every pointer that ever stood, for rollback and repair

Invariant: `champion.json` names a whole bundle at every moment, its revisions and fencing tokens only grow, and whoever
moves it has seen the revision that it replaces (tests/laws/test_store.py). Pointer and bundles are files on purpose:
Redis may lose its memory, the registry may not. A lock file serialises those who write; it needs a file system with
working `flock` (any local one, NFS 4, CephFS), readers take no lock.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pipeline.errors import BadBundle, BadInput, NarrowsError
from pipeline.registry.bundle import load_bundle, read_manifest

log = logging.getLogger(__name__)

POINTER_FORMAT = 1
STREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
DIGEST = re.compile(r"[0-9a-f]{64}")
LEFTOVERS = (".incoming-", ".removed-", ".work-")
LEAST_PREFIX = 4
"""Hexadecimal digits that a shortened digest needs on the command line."""


class Superseded(NarrowsError):
    """Another promotion came first: this challenger was judged against a champion that no longer stands; drop it."""


class DamagedPointer(BadBundle):
    """A pointer that is half written, altered or can't be read; who holds an older one keeps it."""


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which bundle scores a stream from its next commit on.

    revision    : 1, 2, 3 ... one more at each move.
    token       : fencing token of whoever moved it; a mover with a smaller or equal one is refused.
    previous    : digest that `rollback` returns to; None at the first.
    promoted_ms : when, epoch milliseconds.
    job         : id of the retraining job that moved it; None when a person did.
    checksum    : sha256 over all other fields.
    """

    stream: str
    digest: str
    revision: int
    token: int
    promoted_ms: int
    previous: str | None = None
    reason: str = ""
    job: str | None = None
    format: int = POINTER_FORMAT
    checksum: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle in the registry, as `narrows models list` shows it. `fault` is empty when its manifest can be read."""

    stream: str
    digest: str
    published_ms: int
    size_bytes: int
    family: str = ""
    contract_hash: str = ""
    is_champion: bool = False
    fault: str = ""


class Registry:
    """Bundles and pointers under one folder; any number of processes may use it at once.

    root : folder; made at the first publish.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def streams(self) -> list[str]:
        """Names of the streams that have a folder here, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and STREAM_NAME.fullmatch(path.name))

    def digests(self, stream: str) -> list[str]:
        """Digests of the stream's published bundles, sorted."""
        folder = self._folder(stream)
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if DIGEST.fullmatch(path.name))

    def path(self, stream: str, digest: str) -> Path:
        """Folder of a published bundle. Raises BadBundle when there is none with exactly this digest."""
        folder = self._folder(stream) / digest
        if not DIGEST.fullmatch(digest) or not folder.is_dir():
            raise BadBundle(
                f"registry {self.root} holds no bundle {digest[:12]} of stream {stream}: "
                f"`narrows models list --stream {stream}` shows those that it holds"
            )
        return folder

    def find(self, stream: str, prefix: str) -> str:
        """The one digest that begins with `prefix`. Raises BadInput when none or several do."""
        found = [digest for digest in self.digests(stream) if digest.startswith(prefix.lower())]
        if len(prefix) < LEAST_PREFIX or len(found) != 1:
            what = f"{len(found)} bundles" if found else "no bundle"
            raise BadInput(
                f"{what} of stream {stream} begin with {prefix!r}: give at least {LEAST_PREFIX} digits that fit one "
                f"of {', '.join(digest[:12] for digest in self.digests(stream)) or 'none, the registry is empty'}"
            )
        return found[0]

    def entries(self, stream: str) -> list[Entry]:
        """Every bundle of a stream, oldest first. Reads manifests only; `verify` checks the files behind them."""
        champion = self._standing(stream)
        entries = []
        for digest in self.digests(stream):
            folder = self._folder(stream) / digest
            family = contract_hash = fault = ""
            try:
                manifest = read_manifest(folder)
                family, contract_hash = manifest.family, manifest.contract_hash
            except BadBundle as error:
                fault = str(error)
            entries.append(Entry(
                stream=stream, digest=digest, published_ms=int(folder.stat().st_mtime * 1000),
                size_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
                family=family, contract_hash=contract_hash, fault=fault,
                is_champion=champion is not None and champion.digest == digest,
            ))
        return sorted(entries, key=lambda entry: (entry.published_ms, entry.digest))

    def verify(self, stream: str, digest: str) -> None:
        """Reads every file of a bundle against its digests. Raises BadBundle naming what is wrong."""
        found = load_bundle(self.path(stream, digest), None).digest
        if found != digest:
            raise BadBundle(f"bundle {digest[:12]} of stream {stream} holds {found[:12]}: publish it again")

    def publish(self, stream: str, bundle: Path) -> str:
        """Copies a bundle into the registry and returns its digest; the champion stays as it is.

        The copy is made and flushed beside its place, checked there, then renamed: a process that dies on the way
        leaves a `.incoming-*` folder that `prune` removes, never half a bundle. Publishing the same twice is fine.
        Raises BadBundle when the bundle is half written or altered.
        """
        folder = self._folder(stream)
        folder.mkdir(parents=True, exist_ok=True)
        incoming = folder / f".incoming-{uuid.uuid4().hex}"
        try:
            shutil.copytree(bundle, incoming)
            digest = load_bundle(incoming, None).digest
            for path in [*incoming.rglob("*"), incoming]:
                _flush(path)
            os.utime(incoming)                           # published now, however old the copied bundle is
            with self._locked(stream):
                if (folder / digest).is_dir():
                    self.verify(stream, digest)
                else:
                    incoming.rename(folder / digest)
                    _flush(folder)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return digest

    def work_folder(self, stream: str, job: str) -> Path:
        """Where a training run keeps its files; the same for each try of a job, removed by `prune` when forgotten."""
        folder = self._folder(stream) / f".work-{job}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def champion(self, stream: str) -> Pointer | None:
        """The pointer as it stands; None when nothing was ever promoted.

        Raises DamagedPointer when the file is half written or altered: keep the champion that you have.
        """
        return _read(self._folder(stream) / "champion.json")

    def history(self, stream: str) -> list[Pointer]:
        """Every pointer that ever stood and can still be read, oldest first; the standing one included."""
        paths = sorted((self._folder(stream) / "history").glob("*.json"))
        stood = [pointer for path in paths if (pointer := _intact(path)) is not None]
        standing = _intact(self._folder(stream) / "champion.json")
        return stood if standing is None or standing in stood else [*stood, standing]

    def promote(
        self, stream: str, digest: str, *, now_ms: int, token: int | None = None, expected_revision: int | None = None,
        reason: str = "", job: str | None = None,
    ) -> Pointer:
        """Moves the champion pointer to a published bundle, after reading every byte of it.

        token             : fencing token of the caller's lease; None for a person, who gets the next one.
        expected_revision : revision that the caller judged the bundle against (0: none stood); None for a person.
        Promoting the champion again changes nothing. Raises Superseded when the token is not newer than the pointer's
        or the revision moved meanwhile, BadBundle when the bundle fails its check.
        """
        with self._locked(stream):
            standing = self._standing(stream)
            revision, last_token = (standing.revision, standing.token) if standing else (0, 0)
            if standing is not None and standing.digest == digest and standing == self._champion_or_none(stream):
                return standing
            if token is not None and token <= last_token:
                raise Superseded(
                    f"stream {stream}: fencing token {token} is not newer than the champion's {last_token}; "
                    "a newer holder of the lease has promoted"
                )
            if expected_revision is not None and expected_revision != revision:
                raise Superseded(
                    f"stream {stream}: the champion moved from revision {expected_revision} to {revision} meanwhile; "
                    "judge the bundle against the new one"
                )
            return self._move(stream, Pointer(
                stream=stream, digest=digest, revision=revision + 1, promoted_ms=now_ms,
                token=token if token is not None else last_token + 1,
                previous=standing.digest if standing else None, reason=reason, job=job,
            ))

    def rollback(self, stream: str, *, now_ms: int, to: str | None = None) -> Pointer:
        """Points back to the champion before, or to the published digest `to`; the step is a new revision.

        Twice in a row goes two champions back. Raises BadInput when there is nothing to go back to.
        """
        with self._locked(stream):
            standing = self._standing(stream)
            target = to if to is not None else (standing.previous if standing else None)
            if standing is None or target is None:
                raise BadInput(f"stream {stream} has no earlier champion: `narrows models promote` names one")
            stood = [pointer for pointer in self.history(stream) if pointer.digest == target]
            return self._move(stream, Pointer(
                stream=stream, digest=target, revision=standing.revision + 1, promoted_ms=now_ms,
                token=standing.token + 1, previous=stood[0].previous if stood else None,
                reason=f"rollback from {standing.digest[:12]}",
            ))

    def unneeded(
        self, stream: str, *, named: Collection[str], now_ms: int, keep_last: int = 3, min_age_s: float = 86_400.0,
    ) -> list[str]:
        """Digests of the bundles that nothing can need any more, sorted.

        Needed is what a commit names (`named`, whole digests or their first digits), the champion and the one that a
        rollback leads to, the last `keep_last` distinct champions, and whatever was published less than `min_age_s` ago
        (a challenger under way).
        """
        recent = list(dict.fromkeys(pointer.digest for pointer in reversed(self.history(stream))))[:keep_last]
        standing = self._standing(stream)
        needed = set(recent) | ({standing.digest, standing.previous} if standing else set())
        return [
            digest for digest in self.digests(stream)
            if digest not in needed and not any(name and digest.startswith(name) for name in named)
            and now_ms - _mtime_ms(self._folder(stream) / digest) >= min_age_s * 1000
        ]

    def prune(
        self, stream: str, *, named: Collection[str], now_ms: int, keep_last: int = 3, min_age_s: float = 86_400.0,
    ) -> list[str]:
        """Removes what is `unneeded`, and what killed processes left behind; returns the digests of removed bundles."""
        folder = self._folder(stream)
        with self._locked(stream):
            removed = self.unneeded(stream, named=named, now_ms=now_ms, keep_last=keep_last, min_age_s=min_age_s)
            for digest in removed:
                gone = (folder / digest).rename(folder / f".removed-{digest}")
                shutil.rmtree(gone)
            for path in list(folder.iterdir()):
                if path.name.startswith(LEFTOVERS) and now_ms - _mtime_ms(path) >= min_age_s * 1000:
                    shutil.rmtree(path)
        return removed

    def _folder(self, stream: str) -> Path:
        if not STREAM_NAME.fullmatch(stream):
            raise BadInput(f"stream name {stream!r}: use letters, digits, '.', '_', '-'; a letter or digit comes first")
        return self.root / stream

    def _champion_or_none(self, stream: str) -> Pointer | None:
        return _intact(self._folder(stream) / "champion.json")

    def _standing(self, stream: str) -> Pointer | None:
        """The pointer, or where its file is damaged or gone the newest that the history holds."""
        return self._champion_or_none(stream) or next(reversed(self.history(stream)), None)

    def _move(self, stream: str, pointer: Pointer) -> Pointer:
        """Checks the bundle and replaces the pointer; the history is written after it, so it holds only what stood."""
        self.verify(stream, pointer.digest)
        standing = self._champion_or_none(stream)
        pointer = _seal(pointer)
        history = self._folder(stream) / "history"
        history.mkdir(exist_ok=True)
        if standing is not None:
            _replace(history / f"{standing.revision:08d}.json", _encode(standing))
        _replace(self._folder(stream) / "champion.json", _encode(pointer))
        _replace(history / f"{pointer.revision:08d}.json", _encode(pointer))
        return pointer

    @contextmanager
    def _locked(self, stream: str) -> Iterator[None]:
        folder = self._folder(stream)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _seal(pointer: Pointer) -> Pointer:
    return msgspec.structs.replace(pointer, checksum=_checksum(pointer))


def _checksum(pointer: Pointer) -> str:
    bare = msgspec.structs.replace(pointer, checksum="")
    return hashlib.sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()


def _encode(pointer: Pointer) -> bytes:
    return msgspec.json.format(msgspec.json.encode(pointer)) + b"\n"


def _intact(path: Path) -> Pointer | None:
    """The pointer in a file; None, and a line in the log, where the file is damaged."""
    try:
        return _read(path)
    except DamagedPointer as error:
        log.warning("%s", error)
        return None


def _read(path: Path) -> Pointer | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedPointer(f"{path} can't be read ({error.strerror}): is the registry's folder mounted?") from error
    advice = "keep the champion that scores; `narrows models rollback` or `promote` writes a new pointer"
    try:
        fields = msgspec.json.decode(content, type=dict)
        if isinstance(fields.get("format"), int) and fields["format"] > POINTER_FORMAT:
            raise DamagedPointer(f"{path} has format {fields['format']}, this version reads {POINTER_FORMAT}: upgrade")
        pointer = msgspec.convert(fields, Pointer)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DamagedPointer(f"{path} is half written or altered ({error}): {advice}") from error
    if pointer.checksum != _checksum(pointer):
        raise DamagedPointer(f"{path} was altered, its checksum does not fit: {advice}")
    return pointer


def _replace(path: Path, content: bytes) -> None:
    """Writes a file so that every reader, and every crash, sees the old content or the new, whole."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        _flush(temporary)
        temporary.rename(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mtime_ms(path: Path) -> float:
    return path.stat().st_mtime * 1000
