"""A bundle: the folder that holds everything a score depends on beside the log and the contract, under one digest.

Invariant: the digest is the sha256 of the manifest's canonical JSON without its `digest`; the manifest holds the
sha256 of every other file but those under EXTRAS. A folder appears at its place whole or not at all.

    manifest.json  contract.json  model.onnx  scaling.npz  scorer.npz  golden.npz
    [codec.bin] [latents.bin] [weights.safetensors]
    card.md and report/ lie beside them for people, outside of the digest.
"""

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline.core.contract import Contract, parse_contract
from pipeline.core.scaling import Scaling
from pipeline.core.score import Scorer
from pipeline.errors import BadBundle, BadInput

FORMAT = 1
FILES = ("contract.json", "model.onnx", "scaling.npz", "scorer.npz", "golden.npz")
CODEC = "codec.bin"
LATENT_CODEC = "latents.bin"      # the codec model of the latents, for latent blocks
WEIGHTS = "weights.safetensors"   # what a warm start goes on from; the stream never reads it
EXTRAS = ("card.md", "report/")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle says about itself. Fields added later get defaults; a newer `format` is refused.

    files         : sha256 of each file.   contract_hash : of the contract it was made for.
    family        : `var`, `dense`, ...   members : one name a member, in the order of `newest`.
    latent        : D.   latent_space : equal where features of two bundles can be compared.
    data          : what it was trained on: files or topic offsets, first and last ts, rows, devices.
    calibration   : nominal and held-out shares, alerts per device-week, what the span can verify.
    quality       : figures on held-out data, by name.   versions : of the libraries that made it.
    parent        : digest it was warm-started from, "" where none.
    recipe        : how the model is built and was trained; {} for a baseline.   training : what the run did.
    """

    format: int
    files: dict[str, str]
    contract_hash: str
    family: str
    members: tuple[str, ...]
    inputs: tuple[str, ...]
    sensors: tuple[str, ...]
    latent: int
    latent_space: str = ""
    seed: int = 0
    parent: str = ""
    data: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    quality: dict[str, Any] = {}
    versions: dict[str, str] = {}
    recipe: dict[str, Any] = {}
    training: dict[str, Any] = {}
    created_ms: int = 0
    digest: str = ""

    @property
    def short(self) -> str:
        """First 12 hexadecimal digits of the digest, for people."""
        return self.digest[:12]


@dataclass(frozen=True)
class Golden:
    """Inputs and what they must give: windows for the model, residuals for the scorer.

    x : (g, T, I).   newest : (g, M, S).   latent : (g, D).   residuals : (r, L, M*S).   score : (r,), fleet group.
    """

    x: np.ndarray
    newest: np.ndarray
    latent: np.ndarray
    residuals: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory; every file's digest was right when it was read."""

    manifest: Manifest
    contract: Contract
    scaling: Scaling
    scorer: Scorer
    model: bytes
    golden: Golden
    codec: bytes | None
    folder: Path | None = None
    weights: bytes | None = None
    latent_codec: bytes | None = None

    @property
    def digest(self) -> str:
        """64 hexadecimal digits."""
        return self.manifest.digest

    @property
    def short(self) -> str:
        """First 12 hexadecimal digits of the digest, for people."""
        return self.manifest.short


def write_bundle(
    folder: Path, *, contract: Contract, scaling: Scaling, scorer: Scorer, model: bytes, golden: Golden, family: str,
    members: tuple[str, ...], codec: bytes | None = None, weights: bytes | None = None,
    latent_codec: bytes | None = None, extras: Mapping[str, bytes] | None = None, **facts: Any,
) -> Bundle:
    """Writes the folder, whole or not at all, and returns what it holds.

    facts  : further fields of the manifest (`seed`, `parent`, `data`, `calibration`, `quality`, `versions`, ...).
    extras : files for people by relative path (card.md, report/...), outside of the digest.
    An older bundle at this place is replaced; any other folder with something in it raises BadInput.
    """
    folder = Path(folder)
    contents = {
        "contract.json": msgspec.json.format(msgspec.json.encode(contract, order="deterministic"), indent=1),
        "model.onnx": model,
        "scaling.npz": _pack(scaling.to_arrays()),
        "scorer.npz": _pack(scorer.to_arrays()),
        "golden.npz": _pack(vars(golden)),
    }
    if codec is not None:
        contents[CODEC] = codec
    if latent_codec is not None:
        contents[LATENT_CODEC] = latent_codec
    if weights is not None:
        contents[WEIGHTS] = weights
    names = contract.names
    manifest = Manifest(
        format=FORMAT, files={name: _sha256(data) for name, data in contents.items()}, contract_hash=contract.hash,
        family=family, members=members, inputs=tuple(names[place] for place in contract.inputs),
        sensors=tuple(names[place] for place in contract.sensors), latent=int(golden.latent.shape[1]), **facts,
    )
    manifest = msgspec.structs.replace(manifest, digest=_digest(msgspec.to_builtins(manifest)))
    contents["manifest.json"] = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1)
    for name, data in (extras or {}).items():
        if name != EXTRAS[0] and not name.startswith(EXTRAS[1]):
            raise BadInput(f"extra file {name!r}: only {' and '.join(EXTRAS)} lie outside of the digest")
        contents[name] = data
    _write_folder(folder, contents)
    return Bundle(manifest, contract, scaling, scorer, model, golden, codec, folder, weights, latent_codec)


def load_bundle(folder: Path, contract: Contract | None = None) -> Bundle:
    """Reads a bundle and checks every digest.

    contract : the stream's; a bundle made for another one is refused.
    Raises BadBundle, and says what to do, when a file is missing, altered, cut, of a newer format, or made for another
    contract. Runs nothing of it: `pipeline.scoring.gate` does that.
    """
    folder = Path(folder)
    raw = _read_manifest(folder)
    manifest = _parse_manifest(folder, raw)
    contents = {}
    for name, expected in manifest.files.items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise BadBundle(f"{folder}: the manifest names the file {name!r}, which is no plain name")
        data = _read(folder, name)
        if _sha256(data) != expected:
            raise BadBundle(f"{folder}/{name} is altered or half written: its sha256 is not the manifest's; {_AGAIN}")
        contents[name] = data
    for name in FILES:
        if name not in contents:
            raise BadBundle(f"{folder}: the manifest does not list {name}; {_AGAIN}")
    if contract is not None and contract.hash != manifest.contract_hash:
        raise BadBundle(
            f"{folder} was made for another contract ({manifest.contract_hash[:12]}, the stream's is "
            f"{contract.hash[:12]}): train a bundle with the stream's contract, or give the stream the bundle's "
            f"({folder}/contract.json)"
        )
    try:
        own = parse_contract(msgspec.json.decode(contents["contract.json"]))
        scaling = Scaling.from_arrays(_unpack(contents["scaling.npz"]))
        scorer = Scorer.from_arrays(_unpack(contents["scorer.npz"]))
        golden = Golden(**_unpack(contents["golden.npz"]))
    except (BadInput, KeyError, TypeError, ValueError, OSError, msgspec.DecodeError) as error:
        raise BadBundle(f"{folder}: {error}; {_AGAIN}") from error
    if own.hash != manifest.contract_hash:
        raise BadBundle(f"{folder}: contract.json is not the contract that the manifest names; {_AGAIN}")
    return Bundle(manifest, own, scaling, scorer, contents["model.onnx"], golden, contents.get(CODEC), folder,
                  contents.get(WEIGHTS), contents.get(LATENT_CODEC))


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, its own digest checked; for lists."""
    return _parse_manifest(Path(folder), _read_manifest(Path(folder)))


_AGAIN = "make or fetch the bundle again"


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(_read(folder, "manifest.json"))
    except msgspec.DecodeError as error:
        raise BadBundle(f"{folder}/manifest.json is no JSON ({error}); {_AGAIN}") from error
    if not isinstance(raw, dict):
        raise BadBundle(f"{folder}/manifest.json holds no object; {_AGAIN}")
    return raw


def _parse_manifest(folder: Path, raw: dict[str, Any]) -> Manifest:
    version = raw.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise BadBundle(f"{folder} has bundle format {version}, this narrows reads up to {FORMAT}: update narrows")
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise BadBundle(f"{folder}/manifest.json: {error}; {_AGAIN}") from error
    if manifest.digest != _digest(raw):
        raise BadBundle(f"{folder}/manifest.json is altered: its digest is not that of its content; {_AGAIN}")
    return manifest


def _digest(raw: dict[str, Any]) -> str:
    content = {key: value for key, value in raw.items() if key != "digest"}
    return _sha256(msgspec.json.encode(content, order="deterministic"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise BadBundle(f"{folder}/{name} can't be read ({error.strerror}): not a bundle, or a half-written one; "
                        f"{_AGAIN}") from error


def _pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **dict(arrays))   # type: ignore[arg-type]  # numpy's stub mistakes the names for its own flag
    return out.getvalue()


def _unpack(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    if folder.exists() and not (folder / "manifest.json").exists() and any(folder.iterdir()):
        raise BadInput(f"{folder} holds something that is no bundle: give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh.chmod(0o755)
        for name, data in contents.items():
            place = fresh / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            folder.rename(old / "was")
            fresh.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
