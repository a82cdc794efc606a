"""Values to integers and back, with the bound kept: the one rule that encoder, decoder and trainer share.

A *step code* (16 bits) says how a channel becomes integers:
  code < 128  : order-preserving float bits, divided by width(code); code 0 is lossless.
  code >= 128 : uniform step (128 + m) * 2**(E - 263), E = code >> 7 (1..511), m = code & 127.
Both ends compute value = float32(float64(k) * step) with one rounding per operation; no fused operations.
"""

import numpy as np

LOSSLESS = 0
LARGEST = 1 << 31
"""Integers of a channel lie in [-LARGEST, LARGEST); a value outside becomes an exception."""


def width_of_code(code: int) -> int:
    """Neighbouring float32 values that share one integer, for codes under 128."""
    return ((4 + code % 4) << (code // 4)) // 4


def step_of_code(code: int) -> float:
    """Uniform step of codes from 128 on."""
    return float(np.ldexp(128.0 + (code & 127), (code >> 7) - 263))


def code_of_step(step: float) -> int:
    """The code of the largest coded step not above `step`; LOSSLESS where the step is too small or not finite."""
    if not np.isfinite(step) or step <= 0:
        return LOSSLESS
    mantissa, exponent = np.frexp(step)          # step = mantissa * 2**exponent, mantissa in [0.5, 1)
    high, m = exponent + 255, int(mantissa * 256) - 128
    if high < 1:
        return LOSSLESS
    return (min(high, 511) << 7) | m if high <= 511 else 0xFFFF


def code_of_bound(bound: float, largest: float) -> int:
    """Step code that keeps an absolute bound for finite values up to `largest` in size.

    The step is twice (bound - one ulp of the largest value), so that rounding to float32 stays inside; a bound under
    two ulp, or zero, is kept in float bits instead (lossless): a uniform step there would cost more than it saves.
    """
    if bound <= 0:
        return LOSSLESS
    ulp = float(np.spacing(np.float32(min(max(largest, 1e-38), 3e38))))
    return code_of_step(2 * (bound - ulp)) if bound >= 2 * ulp else LOSSLESS


def code_of_relative(bound: float) -> int:
    """Step code that keeps |error| <= bound * |value|: so many neighbouring floats share one integer."""
    width = 2 * bound * 2**23
    code = LOSSLESS
    while code < 127 and width_of_code(code + 1) <= width:
        code += 1
    return code


def tighten(code: int, halvings: int) -> int:
    """The code of a step 2**halvings times finer, down to lossless."""
    if code < 128:
        return max(code - 4 * halvings, 0)
    return code - (halvings << 7) if code >> 7 > halvings else LOSSLESS


def to_ordered(values: np.ndarray) -> np.ndarray:
    """float32 to int64 that sorts as the floats do, one to one over all bit patterns."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)


def from_ordered(ordered: np.ndarray) -> np.ndarray:
    """Inverse of `to_ordered` for integers of 32 bits."""
    bits = ordered.astype(np.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)


def to_integers(column: np.ndarray, code: int) -> np.ndarray:
    """float32 values as integers. NaN and what falls outside the range of integers give 0. (n,) -> (n,) int64."""
    if code < 128:
        width = width_of_code(code)
        return (to_ordered(column) + width // 2) // width if width > 1 else to_ordered(column)
    with np.errstate(over="ignore", invalid="ignore"):
        k = np.rint(column.astype(np.float64) / step_of_code(code))
        return np.where(np.abs(k) < LARGEST, k, 0.0).astype(np.int64)


def to_values(integers: np.ndarray, code: int) -> np.ndarray:
    """Integers back to float32. (n,) -> (n,) float32."""
    if code < 128:
        return from_ordered(np.clip(integers * width_of_code(code), -LARGEST, LARGEST - 1))
    with np.errstate(over="ignore"):
        return (integers * step_of_code(code)).astype(np.float32)


def out_of_bound(column: np.ndarray, rebuilt: np.ndarray, bound: float, *, relative: bool = False) -> np.ndarray:
    """Which values the rebuilt ones don't keep: non-finite values need their very bits. (n,) bool."""
    same = column.view(np.uint32) == rebuilt.view(np.uint32)
    if bound <= 0:
        return ~same
    exact = column.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(rebuilt.astype(np.float64) - exact)
        return ~(same | (error <= (bound * np.abs(exact) if relative else bound)))
