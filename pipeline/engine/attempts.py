"""How the record that kills whoever reads it is found: what commits say of attempts that never came to an end.

A commit says, before the work begins, how far the work reaches; an orderly end takes that back. Whoever finds it not
taken back knows that somebody died between the commit and there: it goes through that stretch in steps, each told by a
commit of its own, so that the next death names a stretch `STEPS` times shorter, at last one record. A record that was
alone in work when its worker died `DEADLY` times is dead.

Invariant (tests/unit/test_attempts.py): whatever else dies, no other record is ever called dead.
"""

from dataclasses import dataclass

from pipeline.engine.checkpoint import Checkpoint

STEPS = 64    # of a suspect stretch: a plain kill costs so many commits, some hundred milliseconds
DEADLY = 3


@dataclass(slots=True)
class Attempts:
    """What is known of deaths at one partition's commit.

    suspect : somebody died between the commit and this offset; -1: nobody.
    alone   : how often the record at the commit died with nothing else in work.
    reach   : end of the step in work, -1 between steps.
    """

    suspect: int = -1
    alone: int = 0
    reach: int = -1

    @classmethod
    def found(cls, checkpoint: Checkpoint | None, next_offset: int, end: int) -> "Attempts":
        """As a commit of `next_offset` tells it. end : of the log, which nobody read beyond; -1 unknown."""
        if checkpoint is None or not checkpoint.attempts:
            return cls()
        told = checkpoint.attempt_end if checkpoint.attempt_end >= 0 else checkpoint.until
        suspect = min(told, end) if end >= 0 else told
        return cls(suspect, checkpoint.attempts if told == next_offset + 1 else 0)

    def is_suspect(self, offset: int) -> bool:
        return offset < self.suspect

    @property
    def is_deadly(self) -> bool:
        """Whether the record at the commit is dead."""
        return self.alone >= DEADLY

    def begin_step(self, offset: int) -> int:
        """The next step begins with the record at `offset`, which is the commit's; returns where it ends."""
        self.reach = offset + max(1, (self.suspect - offset) // STEPS)
        return self.reach

    def end_step(self) -> None:
        """Nobody died."""
        self.reach, self.alone = -1, 0

    def told(self, next_offset: int, at_work: bool) -> tuple[int, int]:
        """(attempts, attempt_end) that a commit of `next_offset` says.  at_work : else an orderly end."""
        if not self.is_suspect(next_offset):
            return int(at_work), -1
        if self.reach < 0 or not at_work:
            return max(1, self.alone), self.suspect
        return (self.alone + 1 if self.reach == next_offset + 1 else 1), self.reach
