"""What people said of an episode: a record of the compacted `narrows.feedback`, keyed by the episode's id."""

import msgspec

VERSION = 1


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict of a person; the newest of an episode counts, and a null value takes it back.

    is_true : the alert was right: its rows are masked in training. False: they are masked too, and calibration makes
              their pattern silent (docs/detection.md).
    """

    version: int = VERSION
    episode_id: str
    is_true: bool
    note: str = ""
