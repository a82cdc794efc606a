"""A trainer as `narrows trainer` runs it, with a training run that only writes a small bundle and leaves traces.

    python -m tests.support.fake_trainer REDIS_URL QUEUE REGISTRY TRACES

TRACES/<name> files steer it: while `hold` exists a run goes on (a line in `runs` tells its process id); `raise` makes
it fail. The trainer ends when the queue has been idle for long, or when it is killed.
"""

import os
import sys
import time
from pathlib import Path

from pipeline.registry.store import Registry
from pipeline.retraining.gate import Figures
from pipeline.retraining.queue import RETRAIN, JobQueue, connect
from pipeline.retraining.request import RetrainRequest
from pipeline.retraining.run import Challenger, Report, make_handler
from pipeline.retraining.trainer import Trainer
from tests.support.small_bundle import write_small_bundle

LEASE_MS = 2_000
LOST_AFTER_S = 5


def main() -> None:
    url, queue, root, traces = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])

    def train(request: RetrainRequest, champion: Path | None, work: Path, report: Report) -> Challenger:
        with (traces / "runs").open("a") as runs:
            runs.write(f"{os.getpid()}\n")
        report("training", 0.5)
        while (traces / "hold").exists():
            time.sleep(0.02)
        if (traces / "raise").exists():
            raise RuntimeError("told to")
        figures = Figures(rows=1_000, over=0.0, detected=1.0, error=0.1, family="raw")
        folder = write_small_bundle(work / "bundle", seed=sum(request.ranges[0])).folder
        assert folder is not None
        return Challenger(folder=folder, figures=figures, champion=None)

    jobs = JobQueue(connect(url), queue)
    handlers = {RETRAIN: make_handler(train, Registry(root), jobs.client, lease_ms=LEASE_MS)}
    Trainer(jobs, handlers, lost_after_s=LOST_AFTER_S).work(max_idle_time=120, logging_level="WARNING")


if __name__ == "__main__":
    main()
