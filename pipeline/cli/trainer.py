"""`narrows trainer`: one retraining worker."""

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ConfigFile
from pipeline.cli.worker import set_up_logging
from pipeline.config import Config, load_config
from pipeline.errors import BadInput, StopWorker
from pipeline.registry.store import Registry
from pipeline.retraining.queue import RETRAIN, JobQueue, connect, reaching
from pipeline.retraining.run import Train, make_handler
from pipeline.retraining.trainer import Trainer

log = logging.getLogger(__name__)

GROUP = "narrows.jobs"
"""Entry points that make what a job runs, by the job's name; `retrain` is called with the configuration."""



def job_queue(config: Config) -> JobQueue:
    """The queue that the configuration names. Raises Unreachable when Redis does not answer."""
    jobs = JobQueue(connect(config.redis.url.reveal(), config.redis.auth))
    with reaching():
        jobs.client.ping()
    return jobs


def trainer(
    config: ConfigFile = None,
    name: Annotated[str | None, typer.Option(help="This trainer's name in Redis; default a new one.")] = None,
    burst: Annotated[bool, typer.Option("--burst", help="End when no job is waiting.")] = False,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run retraining jobs, one at a time, until SIGTERM; a running job is finished first, a second signal drops it.

    Example: narrows trainer --config narrows.yaml
    """
    set_up_logging(log_level)
    tree = load_config(config)
    train = find_train(tree)
    jobs = job_queue(tree)
    fallback = {stream: Path(facts.bundle) for stream, facts in tree.streams.items() if facts.bundle is not None}
    handler = make_handler(train, Registry(tree.registry.path), jobs.client, fallback=fallback)
    worker = Trainer(jobs, {RETRAIN: handler}, name)
    log.info("trainer %s waits for jobs in %s", worker.name, jobs.queue.name)
    with reaching():
        worker.work(burst=burst, logging_level="WARNING")
    if not worker.was_told_to_stop and not burst:
        raise StopWorker("the trainer's loop ended by itself, the log says why; start it again")


def find_train(config: Config) -> Train:
    """What trains, from the distribution's `train` extra. Raises BadInput where that is not installed."""
    for entry in entry_points(group=GROUP, name="retrain"):
        try:
            made: Train = entry.load()(config)
        except ImportError as error:
            raise BadInput(f"training can't be loaded ({error}): install narrows[cpu,train]") from error
        return made
    raise BadInput(f"no entry point {GROUP}: install the narrows distribution itself (`pip install .`), not its files")
