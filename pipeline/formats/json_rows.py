"""Wide JSON rows straight from the bytes of a fetch, compiled: about a third of the cost of an object a record.

It reads what sensors nearly always send and leaves the rest: a record with anything unusual (an escape, a name beyond
ASCII, a name twice, a nested value, a number that it can't round for sure, any error) is not read here but by
`pipeline.formats.json`, which is slower and knows every case.

Invariant (tests/laws/test_formats.py): what is read here is, to the bit, what `WideDecoder` makes of the same value.

Neighbours nearly always differ in their values alone. So a record is first compared with the last one that was read in
full, byte by byte between the values; what has no such likeness is read in full itself.

Numbers: up to 19 digits and powers of ten up to 22 are one exact or nearly exact float64 operation (Clinger 1990). The
result is wanted as float32, so a last bit of the float64 matters only where it lies by the middle between two float32;
such numbers are left.
"""

from collections.abc import Sequence
from functools import partial

import numba
import numpy as np
import numpy.typing as npt

from pipeline.core.records import Int, Names, Records

Bytes = npt.NDArray[np.uint8]

NUMBER, DEVICE, TIME, BODY, SKIP = range(5)   # what a field is
NAME_ROOM = 1 << 17                           # names kept between batches

POWERS = np.array([10.0**power for power in range(23)])
EXACT = np.uint64(1 << 53)                    # integers up to here are float64s
BELOW, ABOVE = 1 - 2.0**-48, 1 + 2.0**-48     # between these times itself lies what a float64 stands for, surely
SMALLEST, LARGEST = 1e-37, 3e38               # beyond these float32 is subnormal or overflows

NAME_BYTES = 256

# Without numba's reference counts, which cost four times what reading does; so a kernel allocates nothing.
kernel = partial(numba.njit, cache=True, error_model="numpy", no_cfunc_wrapper=True, _nrt=False)
inner = partial(kernel, inline="always")


class RowReader:
    """Reads the rows of one layout.

    fields : (name in the record, what it is, whether it stands inside the body), the numbers first, in channel order.
    width  : how many numbers.
    """

    def __init__(self, fields: Sequence[tuple[str, int, bool]], width: int) -> None:
        names = [name.encode() for name, _, _ in fields]
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._name_at = np.cumsum([0, *map(len, names)])
        self._what = np.array([what for _, what, _ in fields], np.int64)
        self._inside = np.array([inside for _, _, inside in fields], bool)
        self._guess = np.zeros((2, len(fields) + 1), np.int64)
        self._skips = [place for place, (_, what, _) in enumerate(fields) if what == SKIP]
        self._width = width
        self._known = NameTable()
        self._stamp = np.empty(len(fields), np.int64)
        self._piece = np.empty((len(fields) + 1, 2), np.int64)
        self._order = np.empty(len(fields), np.int64)

    def read(self, records: Records) -> tuple[npt.NDArray[np.bool_], Names, Int, npt.NDArray[np.float32], Int]:
        """(read, device, ts, values, skipped): (n,) bool, n names, (n,) int64, (n, C) float32, and how many of the
        rows had each field of kind SKIP. What is not `read` holds nothing of meaning. ts is as it stands in the record,
        -1 without one; a record without a device is not read."""
        n = len(records)
        ts = np.empty(n, np.int64)
        values = np.empty((n, self._width), np.float32)
        device = np.empty((n, 2), np.int64)
        read = np.empty(n, bool)
        skipped = np.zeros(len(self._what), np.int64)
        data = np.frombuffer(records.raw, np.uint8)
        read_rows(
            data, records.value, self._names, self._name_at, self._what, self._inside, self._guess, self._stamp,
            self._piece, self._order, ts, values, device, read, skipped,
        )
        return read, self._known.names_of(records.raw, data, device, read), ts, values, skipped[self._skips]


class NameTable:
    """Device names by their bytes: a hash table whose keys stay compiled code's, so that a known name costs no object.

    It is emptied between batches once it holds NAME_ROOM names; its numbers mean something within one batch alone.
    """

    def __init__(self) -> None:
        self._empty()

    def _empty(self) -> None:
        self._names: list[str] = []
        self._numbers: dict[bytes, int] = {}
        self._text = np.empty(1 << 12, np.uint8)
        self._at = np.zeros(257, np.int64)               # name i is text[at[i]:at[i + 1]]
        self._table = np.full(1024, -1, np.int64)

    def names_of(self, raw: bytes, data: Bytes, where: Int, wanted: npt.NDArray[np.bool_]) -> Names:
        """The names at `where`, (n, 2); number 0 where not wanted."""
        if len(self._names) > NAME_ROOM:
            self._empty()
        numbers = np.empty(len(where), np.int64)
        if find_names(data, where, wanted, self._table, self._text, self._at, numbers):
            for place in np.flatnonzero(numbers < 0).tolist():
                name = raw[where[place, 0] : where[place, 1]]
                number = self._numbers.get(name)
                numbers[place] = self._add(name) if number is None else number
        return Names(self._names or [""], numbers)

    def _add(self, name: bytes) -> int:
        number = self._numbers[name] = len(self._names)
        self._names.append(name.decode("ascii"))
        start = int(self._at[number])
        if number + 2 > len(self._at):
            self._at = np.concatenate([self._at, np.zeros_like(self._at)])
        while start + len(name) > len(self._text):
            self._text = np.concatenate([self._text, np.empty_like(self._text)])
        self._text[start : start + len(name)] = np.frombuffer(name, np.uint8)
        self._at[number + 1] = start + len(name)
        if 2 * len(self._names) > len(self._table):
            self._table = np.full(4 * len(self._table), -1, np.int64)
            for again in range(number):
                put_name(self._table, self._text, self._at, again)
        put_name(self._table, self._text, self._at, number)
        return number


# ---------------------------------------------------------------- compiled


@inner()
def hash_of(data, start, stop):  # type: ignore[no-untyped-def]
    """FNV-1a, 64 bits, with its high bits folded down."""
    found = np.uint64(14695981039346656037)
    for at in range(start, stop):
        found = (found ^ np.uint64(data[at])) * np.uint64(1099511628211)
    return np.int64((found ^ (found >> np.uint64(32))) & np.uint64(0x7FFFFFFF))


@kernel()
def put_name(table, text, name_at, number):  # type: ignore[no-untyped-def]
    """Enters a name that is not there."""
    mask = len(table) - 1
    slot = hash_of(text, name_at[number], name_at[number + 1]) & mask
    while table[slot] >= 0:
        slot = (slot + 1) & mask
    table[slot] = number


@kernel()
def find_names(data, where, wanted, table, text, name_at, numbers):  # type: ignore[no-untyped-def]
    """Fills the numbers of known names, -1 for others; returns how many of those there are."""
    mask = len(table) - 1
    missing = 0
    for i in range(len(where)):
        numbers[i] = 0
        if not wanted[i]:
            continue
        start, stop = where[i, 0], where[i, 1]
        slot = hash_of(data, start, stop) & mask
        numbers[i] = -1
        while table[slot] >= 0:
            number = table[slot]
            if same(data, start, stop, text, name_at[number], name_at[number + 1]):
                numbers[i] = number
                break
            slot = (slot + 1) & mask
        if numbers[i] < 0:
            missing += 1
    return missing


@inner()
def same(a, a_start, a_stop, b, b_start, b_stop):  # type: ignore[no-untyped-def]
    if a_stop - a_start != b_stop - b_start:
        return False
    for i in range(a_stop - a_start):   # noqa: SIM110  numba has no generators
        if a[a_start + i] != b[b_start + i]:
            return False
    return True


@kernel()
def read_rows(  # type: ignore[no-untyped-def]
    data, where, names, name_at, what, inside, guess, stamp, piece, order, ts, values, device, read, skipped
):
    """See `RowReader.read`.

    guess : (2, fields + 1), which field stood at each place of an object the last time.
    stamp : (fields,), the last record that had each field.
    piece : (fields + 1, 2), of the last record read in full: [start, stop) of its bytes before each value, and of those
        behind the last one.  order : (fields,), whose values these are.
    """
    stamp[:] = -1
    known = 0                                     # values of the last record read in full
    for i in range(len(where)):
        start, stop = where[i, 0], where[i, 1]
        read[i] = False
        if known and start >= 0:
            empty(i, ts, values, device)
            read[i] = read_alike(data, start, stop, what, piece, order, known, i, ts, values, device)
        if not read[i]:
            empty(i, ts, values, device)
            known = read_row(
                data, start, stop, names, name_at, what, inside, guess, stamp, piece, order, i, ts, values, device
            )
            read[i] = known > 0
        for place in range(known):                # of what is left, whoever reads it counts the unknown fields
            if what[order[place]] == SKIP:
                skipped[order[place]] += 1


@inner()
def empty(i, ts, values, device):  # type: ignore[no-untyped-def]
    for column in range(values.shape[1]):
        values[i, column] = np.nan
    ts[i] = device[i, 0] = -1


@inner()
def read_alike(data, at, stop, what, piece, order, known, i, ts, values, device):  # type: ignore[no-untyped-def]
    """Reads an object that differs from the last one in its values alone; False where it does in anything else."""
    for place in range(known + 1):
        first, last = piece[place, 0], piece[place, 1]
        if at + last - first > stop:
            return False
        for other in range(first, last):
            if data[at] != data[other]:
                return False
            at += 1
        if place == known:
            break
        at = read_value(data, at, stop, what[order[place]], order[place], i, ts, values, device)
        if at < 0:
            return False
    return at == stop


@kernel()
def read_row(  # type: ignore[no-untyped-def]
    data, at, stop, names, name_at, what, inside, guess, stamp, piece, order, i, ts, values, device
):
    """Reads one object, with at most one more in it. The number of its values, 0 where the record is left."""
    if at < 0:
        return 0
    known, behind = 0, at
    at = blank(data, at, stop)
    if at >= stop or data[at] != 123:             # {
        return 0
    level, member, above = 0, 0, 0                # above : the place among the outer members while inside
    at = blank(data, at + 1, stop)
    opened = True                                 # an object may end here before its first member
    while at < stop:
        if not (opened and data[at] == 125):
            if data[at] != 34:                    # "
                return 0
            start = at + 1
            at = text_end(data, start, stop)
            if at < 0:
                return 0
            field = field_of(data, start, at, names, name_at, inside, guess, level, member)
            if field < 0 or stamp[field] == i:
                return 0
            stamp[field] = i
            guess[level, member] = field
            member = min(member + 1, guess.shape[1] - 1)
            at = blank(data, at + 1, stop)
            if at >= stop or data[at] != 58:      # :
                return 0
            at = blank(data, at + 1, stop)
            if at >= stop:
                return 0
            opened = False
            if what[field] == BODY:
                if data[at] != 123 or level:
                    return 0
                level, above, member, opened = 1, member, 0, True
                at = blank(data, at + 1, stop)
                continue
            piece[known, 0], piece[known, 1], order[known] = behind, at, field
            at = behind = read_value(data, at, stop, what[field], field, i, ts, values, device)
            if at < 0:
                return 0
            known += 1
            at = blank(data, at, stop)
        while at < stop and data[at] == 125:      # }
            at = blank(data, at + 1, stop)
            if not level:
                piece[known, 0], piece[known, 1] = behind, stop
                return known if at == stop and device[i, 0] >= 0 else 0
            level, member = 0, above
        if at >= stop or data[at] != 44:          # ,
            return 0
        opened = False
        at = blank(data, at + 1, stop)
    return 0


@inner()
def read_value(data, at, stop, kind, field, i, ts, values, device):  # type: ignore[no-untyped-def]
    """Takes the value at `at` into row i; the place behind it, -1 where it is left."""
    if at >= stop:
        return np.int64(-1)
    if kind == NUMBER:
        if data[at] == 110:                       # null stays missing
            return word_end(data, at, stop)
        number, at = read_float32(data, at, stop)
        values[i, field] = number
        return at
    if kind == TIME:
        ts[i], at = read_whole(data, at, stop)
        return at
    if kind == DEVICE:
        start = at + 1
        if data[at] != 34:                        # "
            return np.int64(-1)
        at = text_end(data, start, stop)
        if at <= start or at - start > NAME_BYTES:
            return np.int64(-1)
        device[i, 0], device[i, 1] = start, at
        return at + 1
    if data[at] == 34:
        at = text_end(data, at + 1, stop)
        return at + 1 if at >= 0 else at
    if data[at] == 45 or 48 <= data[at] <= 57:
        _, at = read_float32(data, at, stop)
        return at
    return word_end(data, at, stop)


@inner()
def blank(data, at, stop):  # type: ignore[no-untyped-def]
    """Behind white space."""
    while at < stop and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at


@inner()
def text_end(data, at, stop):  # type: ignore[no-untyped-def]
    """Place of the closing quote; -1 where an escape or a byte that is not printable ASCII comes first."""
    while at < stop:
        byte = data[at]
        if byte == 34:
            return at
        if byte == 92 or byte < 32 or byte > 126:
            return -1
        at += 1
    return -1


@inner()
def field_of(data, start, stop, names, name_at, inside, guess, level, member):  # type: ignore[no-untyped-def]
    """Number of the field of this name on this level, -1 where there is none."""
    likely = guess[level, member]
    if inside[likely] == level and same(data, start, stop, names, name_at[likely], name_at[likely + 1]):
        return likely
    for field in range(len(name_at) - 1):
        if inside[field] == level and same(data, start, stop, names, name_at[field], name_at[field + 1]):
            return field
    return -1


@inner()
def word_end(data, at, stop):  # type: ignore[no-untyped-def]
    """Behind null, true or false, else -1."""
    if at + 4 <= stop and data[at] == 110 and data[at + 1] == 117 and data[at + 2] == 108 and data[at + 3] == 108:
        return at + 4
    if at + 4 <= stop and data[at] == 116 and data[at + 1] == 114 and data[at + 2] == 117 and data[at + 3] == 101:
        return at + 4
    if (at + 5 <= stop and data[at] == 102 and data[at + 1] == 97 and data[at + 2] == 108 and data[at + 3] == 115
            and data[at + 4] == 101):
        return at + 5
    return -1


@inner()
def read_whole(data, at, stop):  # type: ignore[no-untyped-def]
    """(integer of at most 18 digits, place behind it); -1, -1 for anything else."""
    start, number = at, np.int64(0)
    while at < stop and 48 <= data[at] <= 57:
        number = number * 10 + np.int64(data[at]) - 48
        at += 1
        if at - start > 18:
            return np.int64(-1), np.int64(-1)
    if at == start or (data[start] == 48 and at - start > 1):
        return np.int64(-1), np.int64(-1)
    if at < stop and (data[at] == 46 or data[at] == 101 or data[at] == 69):    # . e E
        return np.int64(-1), np.int64(-1)
    return number, np.int64(at)


@inner()
def read_float32(data, at, stop):  # type: ignore[no-untyped-def]
    """(number, place behind it); the place is -1 where it is no JSON number, or not surely rounded."""
    bad = (np.float32(0), np.int64(-1))
    minus = at < stop and data[at] == 45
    if minus:
        at += 1
    mantissa, first = np.uint64(0), at
    while at < stop and 48 <= data[at] <= 57:
        mantissa = mantissa * np.uint64(10) + np.uint64(data[at] - 48)
        at += 1
    digits, power, whole = at - first, np.int64(0), at
    if digits == 0 or (data[first] == 48 and digits > 1):
        return bad
    if at < stop and data[at] == 46:
        at += 1
        start = at
        while at < stop and 48 <= data[at] <= 57:
            mantissa = mantissa * np.uint64(10) + np.uint64(data[at] - 48)
            at += 1
        power = start - at
        if power == 0:
            return bad
        digits -= power
    if digits > 19:                               # and a small number's leading zeros with them
        return bad
    if at < stop and (data[at] == 101 or data[at] == 69):
        at += 1
        down = at < stop and data[at] == 45
        if at < stop and (data[at] == 45 or data[at] == 43):
            at += 1
        start, more = at, np.int64(0)
        while at < stop and 48 <= data[at] <= 57 and at - start < 4:
            more = more * 10 + np.int64(data[at]) - 48
            at += 1
        if at == start or (at < stop and 48 <= data[at] <= 57):
            return bad
        power = power - more if down else power + more
    if mantissa == 0 and minus and at == whole:   # -0 is the integer 0, and -0.0 is not
        return bad
    if mantissa == 0:
        return np.float32(-0.0) if minus else np.float32(0.0), np.int64(at)
    if power < -22 or power > 22:
        return bad
    number = np.float64(mantissa)
    number = number * POWERS[power] if power >= 0 else number / POWERS[-power]
    if number < SMALLEST or number > LARGEST:
        return bad
    if mantissa > EXACT and np.float32(number * BELOW) != np.float32(number * ABOVE):
        return bad
    return np.float32(-number if minus else number), np.int64(at)


def warm_up() -> None:
    """Compile, or load from the cache."""
    reader = RowReader([("a", NUMBER, True), ("d", DEVICE, False), ("t", TIME, False), ("v", BODY, False)], 1)
    one = b'{"d":"x","t":1,"v":{"a":1.5}}'
    for _ in range(2):
        reader.read(Records.of([(0, 0, None, one)]))
