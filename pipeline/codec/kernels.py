"""How this package compiles: `kernel` for what Python calls, `inner` for what only kernels call (compiles faster).

Compiled kernels that are older than the source are dropped before numba can load them:
numba's cache looks at the file that a kernel stands in, not at the kernels that it calls in other files: after an
edit of coder.py it would go on with the old coder inside block.py's kernels, and write blocks that nobody can read.
So the whole package counts as one source. (Where NUMBA_CACHE_DIR moves the cache, empty that folder after an edit.)
"""

import contextlib
from functools import partial
from pathlib import Path

import numba

kernel = partial(numba.njit, cache=True, error_model="numpy", no_cfunc_wrapper=True)
inner = partial(kernel, no_cpython_wrapper=True)


def drop_stale_kernels() -> None:
    """Removes cached kernels of this package that are older than its newest source file."""
    folder = Path(__file__).parent
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    for index in folder.glob("__pycache__/*.nbi"):
        with contextlib.suppress(OSError):           # another process was faster, or the folder is read-only
            if index.stat().st_mtime < newest:
                index.unlink()


drop_stale_kernels()
