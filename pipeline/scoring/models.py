"""Loaded bundles of this worker: which one each stream wants, and any that a commit names.

A new digest is read, gated in a child process and opened once, in a thread, before anyone is told of it; one that
fails is refused, logged once, and the old one scores on. Nothing here swaps: that happens at a commit (agent.py).
"""

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pipeline.core.contract import Contract
from pipeline.errors import BadBundle, BadInput, StopWorker
from pipeline.registry.bundle import Bundle, load_bundle
from pipeline.registry.store import Registry
from pipeline.scoring.blank import blank_model
from pipeline.scoring.gate import open_session
from pipeline.scoring.stream import BLANK, Model

log = logging.getLogger(__name__)


class ModelShelf:
    """Models by digest, one session each.

    contracts : the streams' own, by stream.   fallback : bundle folder of a stream without a champion.
    refused   : called with a stream's name when a new bundle fails its gate.
    """

    def __init__(
        self, registry: Registry, contracts: Mapping[str, Contract], fallback: Mapping[str, Path], provider: str,
        refused: Callable[[str], None] = lambda stream: None,
    ) -> None:
        self._registry, self._contracts, self._fallback = registry, contracts, fallback
        self._provider, self._refused = provider, refused
        self._models: dict[str, Model] = {}
        self._blanks = {stream: blank_model(contract) for stream, contract in contracts.items()}
        self._wanted: dict[str, str] = {}
        self._told: dict[str, str] = {}     # stream -> last refusal that was logged
        self.revisions: dict[str, int] = {}
        self.data_end_ms: dict[str, int] = {}

    def open(self) -> None:
        """Load what each stream starts with: a champion, else the configured bundle, else none, which the log says."""
        for stream in self._contracts:
            self.look(stream)
            if stream in self._wanted:
                continue
            folder = self._fallback.get(stream)
            if folder is None:
                self._wanted[stream] = BLANK
                log.warning(
                    "stream %s: the registry has no champion for it and no bundle is configured: its rows are unscored "
                    "(no_model) until one is promoted; `narrows train FILE --out BUNDLE`, then `narrows models add "
                    "BUNDLE --stream %s --promote`, or `narrows jobs submit %s`", stream, stream, stream,
                )
                continue
            model = self._open(stream, load_bundle(folder, self._contracts[stream]), first=True)
            self._wanted[stream] = model.digest

    def look(self, stream: str) -> bool:
        """Follow the champion pointer; True when the stream now wants another digest. Blocking: call it in a thread."""
        try:
            pointer = self._registry.champion(stream)
        except BadBundle as error:   # a damaged pointer: the champion that we have stays
            self._refuse(stream, str(error))
            return False
        if pointer is None or self._wanted.get(stream) == pointer.digest:
            return False
        try:
            if pointer.digest not in self._models:
                folder = self._registry.path(stream, pointer.digest)
                self._open(stream, load_bundle(folder, self._contracts[stream]), first=True)
        except BadBundle as error:
            self._refuse(stream, str(error))
            return False
        self._wanted[stream] = pointer.digest
        self.revisions[stream] = pointer.revision
        return True

    def wanted(self, stream: str) -> Model:
        """The model that the stream should score with from its next commit on."""
        digest = self._wanted[stream]
        return self._blanks[stream] if digest == BLANK else self._models[digest]

    def load(self, stream: str, digest: str) -> Model:
        """The model that a commit names. Raises StopWorker where it is gone: scoring with another would be wrong."""
        known = self._blanks[stream] if digest == BLANK else self._models.get(digest)
        if known is not None:
            return known
        try:
            folder = self._registry.path(stream, digest)
            fallback = self._fallback.get(stream)
            if not folder.exists() and fallback is not None:
                bundle = load_bundle(fallback, self._contracts[stream])
                if bundle.digest == digest:
                    return self._open(stream, bundle, first=False)
            return self._open(stream, load_bundle(folder, self._contracts[stream]), first=False)
        except (BadBundle, BadInput) as error:
            raise StopWorker(
                f"stream {stream}: the last commit names bundle {digest[:12]}, which can't be loaded ({error}); put it "
                "back into the registry, or give up the position with `narrows offsets reset`"
            ) from error

    def keep(self, digests: Collection[str]) -> None:
        """Close the sessions of all models but these and those that streams want."""
        needed = {*digests, *self._wanted.values()}
        self._models = {digest: model for digest, model in self._models.items() if digest in needed}

    def _open(self, stream: str, bundle: Bundle, first: bool) -> Model:
        if bundle.digest not in self._models:
            session = open_session(bundle, self._provider, in_child=first)
            self._models[bundle.digest] = Model(
                bundle.digest, session, bundle.scaling, bundle.scorer, bundle.codec, bundle.model, bundle.latent_codec
            )
            log.info("stream %s: bundle %s loaded on %s", stream, bundle.short, session.provider)
        last = bundle.manifest.data.get("last_ts_ms")
        self.data_end_ms[bundle.digest] = int(last) if last is not None else 0
        return self._models[bundle.digest]

    def _refuse(self, stream: str, why: str) -> None:
        if self._told.get(stream) != why:
            self._told[stream] = why
            self._refused(stream)
            log.warning("stream %s: new bundle refused, the old one scores on: %s", stream, why)
