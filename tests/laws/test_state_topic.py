"""The state topic: whoever reads it gets the state as of the commit that stands, whenever the writer died."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.state_topic import Entries, Name, State, read_entries

NAMES = [Name("pump", device, late) for device in ("one", "two") for late in (False, True)]
NAMES += [Name("pump", device, kind="aside") for device in ("one", "three")]

changes = st.dictionaries(
    st.sampled_from(NAMES), st.one_of(st.none(), st.builds(lambda level: {"level": level}, st.integers(0, 9))),
    max_size=4,
)
fates = st.sampled_from(["acknowledged", "answer lost", "refused"])
owners = st.lists(st.lists(st.tuples(changes, fates), max_size=5), min_size=1, max_size=3)


@given(owners=owners, written=st.integers(0, 3), data=st.data())
def test_a_reader_finds_the_state_as_of_the_commit_that_stands(owners, written, data):
    """Owners follow one another; each makes commits, and dies having delivered only the first records of its last."""
    topic: dict[bytes, bytes] = {}
    stands, epoch, next_offset = 0, "none", 0
    as_of: dict[int, dict[Name, State]] = {0: {}}
    for number, commits in enumerate(owners):
        states, leftovers = read_entries(topic.items(), "t", 0, epoch, stands)
        assert states == as_of[stands]
        own = f"e{number}"
        entries = Entries("t", 0, own, stands, states)
        now: dict[Name, State | None] = dict(states)
        changed: dict[Name, State | None] = {}
        next_offset = stands
        for change, fate in commits:
            next_offset += 1
            now |= change
            changed |= change
            write(topic, entries.before_commit(next_offset, changed))
            if fate != "refused":
                stands, epoch = next_offset, own
                as_of[stands] = {name: state for name, state in now.items() if state is not None}
            if fate == "acknowledged":
                entries.acknowledged(next_offset)
                changed = {}
                write(topic, [(key, None) for key in leftovers])
                leftovers = []
        records = entries.before_commit(next_offset + 1, changed | data.draw(changes))
        write(topic, records[:written])
    assert read_entries(topic.items(), "t", 0, epoch, stands)[0] == as_of[stands]


def write(topic: dict[bytes, bytes], records: list[tuple[bytes, bytes | None]]) -> None:
    """A compacted topic: the newest value of each key stays, none removes it."""
    for key, value in records:
        if value is None:
            topic.pop(key, None)
        else:
            topic[key] = value
