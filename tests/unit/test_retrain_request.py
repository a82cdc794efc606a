"""A retrain request names records by offsets and nothing that runs code."""

import json

import msgspec
import pytest

from pipeline.errors import BadInput
from pipeline.retraining.request import RetrainRequest, from_plain, job_prefix, to_plain

REQUEST = RetrainRequest(
    stream="pump", topic="readings", ranges={0: (0, 100), 1: (7, 7)}, contract_hash="c" * 64, champion=None,
    reason="volume", requested_ms=1,
)


def test_a_request_survives_json():
    assert from_plain(json.loads(json.dumps(to_plain(REQUEST)))) == REQUEST


def test_the_same_records_are_the_same_job_whenever_and_whyever_asked():
    later = msgspec.structs.replace(REQUEST, requested_ms=2, reason="age", champion="d" * 64)
    assert later.job_id == REQUEST.job_id
    for change in ({"stream": "fan"}, {"topic": "other"}, {"contract_hash": "e" * 64}, {"ranges": {0: (0, 101)}}):
        assert msgspec.structs.replace(REQUEST, **change).job_id != REQUEST.job_id


@pytest.mark.parametrize(("one", "other"), [("a.b", "a_b"), ("a", "a-b")])
def test_jobs_of_two_streams_never_share_a_prefix(one, other):
    assert not job_prefix(one).startswith(job_prefix(other))
    assert not job_prefix(other).startswith(job_prefix(one))


@pytest.mark.parametrize("ranges", [{}, {0: (5, 5)}, {0: (5, 4)}, {-1: (0, 1)}, {0: (-1, 4)}])
def test_ranges_that_hold_nothing_or_run_backwards_are_refused(ranges):
    with pytest.raises(BadInput):
        msgspec.structs.replace(REQUEST, ranges=ranges)


@pytest.mark.parametrize(
    "plain", [None, [], {}, {**to_plain(REQUEST), "run": "os.system"}, {**to_plain(REQUEST), "ranges": {"x": [0, 1]}}],
)
def test_anything_else_that_lies_in_redis_is_refused(plain):
    with pytest.raises(BadInput):
        from_plain(plain)
