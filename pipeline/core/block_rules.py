"""How a stream's rows are kept in blocks: bounded, as latents or both, finer in episodes. The stream's own setting.

Blocks are a function of the log, the contract, the digest and these rules: change them between two runs of a worker.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Kind = Literal["bounded", "latent", "both", "auto"]


class BlockRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One choice; the first rule that fits a device and a channel holds.

    devices  : names or patterns (`pump-*`); empty = all.
    channels : names; empty = all.
    kind     : as in the rules around it.
    """

    devices: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    kind: Kind = "bounded"


class BlockRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a block holds.

    kind        : `bounded` keeps each value within its bound; `latent` keeps the model's latents, far smaller, with the
                  error that they really make; `both`; `auto` takes latents for a channel of a block where they keep
                  its bound and save bytes.
    rules       : other kinds for some devices or channels, each {devices, channels, kind}; the first that fits holds.
    in_episode  : bounds of an episode's rows, as a share of the contract's; 0 keeps every bit, null and 1 as the rest.
    rows_before : rows before an episode, of the same block, that are kept like it.
    summaries   : least, largest, mean and count of each channel beside each block, for charts without decoding.
    """

    kind: Kind = "bounded"
    rules: tuple[BlockRule, ...] = ()
    in_episode: Annotated[float, Meta(ge=0, le=1)] | None = 0.1
    rows_before: Annotated[int, Meta(ge=0)] = 32
    summaries: bool = False

    def kinds(self, device: str, channels: Iterable[str]) -> list[Kind]:
        """Kind of each channel of a device.

        >>> rules = BlockRules(rules=(BlockRule(devices=("pump-*",), channels=("heat",), kind="latent"),))
        >>> rules.kinds("pump-7", ["flow", "heat"])
        ['bounded', 'latent']
        """
        own = [rule for rule in self.rules if not rule.devices or any(fnmatchcase(device, one) for one in rule.devices)]
        return [
            next((rule.kind for rule in own if not rule.channels or channel in rule.channels), self.kind)
            for channel in channels
        ]

    @property
    def wants_latents(self) -> bool:
        """Whether any block may hold latents."""
        return any(kind != "bounded" for kind in (self.kind, *(rule.kind for rule in self.rules)))
