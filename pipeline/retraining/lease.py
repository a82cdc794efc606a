"""A lease in Redis with a fencing token: one holder at a time, and a holder that came too late can be told.

`SET NX PX` alone keeps two holders apart only while nobody sleeps longer than the lease: a stopped process wakes up and
still believes. So every lease carries a token from a counter that only grows; renew and release compare it in Lua, and
what the lease protects (the champion pointer) refuses a token that is not newer than its own. redis-py's `Lock` has no
such token. The token may not start again from 1 when Redis forgets its counter: `acquire` takes the largest token that
the registry has seen as a floor.
Source: Kleppmann 2016, "How to do distributed locking"; Redis documentation of SET.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis

# KEYS: lease, counter; ARGV: ttl in ms, floor. The lease's value is its token.
ACQUIRE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if last < tonumber(ARGV[2]) then redis.call('SET', KEYS[2], ARGV[2]) end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token, 'NX', 'PX', ARGV[1])
return token
"""
RENEW = "if redis.call('GET', KEYS[1]) == ARGV[2] then return redis.call('PEXPIRE', KEYS[1], ARGV[1]) end return 0"
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Lease:
    """A held lease. Pass `token` to whatever it protects; ask `renew` before a step that can't be undone."""

    def __init__(self, client: "redis.Redis", key: str, token: int, ttl_ms: int) -> None:
        self.key = key
        self.token = token
        self.ttl_ms = ttl_ms
        self._client = client

    def renew(self) -> bool:
        """Prolongs the lease by its whole time; False when it ran out or has another holder."""
        return bool(self._client.eval(RENEW, 1, self.key, self.ttl_ms, self.token))

    def release(self) -> bool:
        """Gives the lease back; False when it was not ours any more, and then nothing is touched."""
        return bool(self._client.eval(RELEASE, 1, self.key, self.token))

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """Renews from a thread every third of the lease's time while the block runs, then releases.

        A renewal that fails does not interrupt the block: whether the lease still holds is asked, and the token
        compared, before anything is published.
        """
        done = threading.Event()

        def keep() -> None:
            while not done.wait(self.ttl_ms / 3000):
                try:
                    if not self.renew():
                        return
                except redis.RedisError:
                    continue

        thread = threading.Thread(target=keep, name=f"renew {self.key}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            with suppress(redis.RedisError):             # then it runs out by itself
                self.release()


def acquire(client: "redis.Redis", name: str, ttl_ms: int, above: int = 0) -> Lease | None:
    """The lease `name` for `ttl_ms` milliseconds, or None while another holds it.

    above : the token is larger than this one and than every token given out before under this name.
    Raises redis.RedisError when Redis can't be asked.
    """
    key = f"narrows:lease:{name}"
    token = client.eval(ACQUIRE, 2, key, f"narrows:fence:{name}", ttl_ms, above)
    return Lease(client, key, int(token), ttl_ms) if token else None
