"""`narrows jobs`: retraining jobs in Redis."""

import time
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from pipeline.cli.options import ConfigFile, Json
from pipeline.cli.trainer import job_queue
from pipeline.config import load_config
from pipeline.errors import BadInput
from pipeline.registry.store import Registry
from pipeline.retraining.asking import newest_ranges
from pipeline.retraining.queue import JobFacts
from pipeline.retraining.request import RetrainRequest

app = typer.Typer(no_args_is_help=True, help="Retraining jobs: what waits, runs and ran.")

POLL_S = 0.5


@app.command("list")
def list_jobs(
    stream: Annotated[str | None, typer.Option(help="This stream's alone.")] = None, config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Show every job that Redis knows, newest first: state, stage, outcome.

    Example: narrows jobs list --stream pump --json
    """
    facts = job_queue(load_config(config)).jobs(stream)
    if json:
        print(msgspec.json.encode(facts).decode())
        return
    table = Table("job", "state", "requested", "records", "what", "reason", box=None)
    for fact in facts:
        requested = datetime.fromtimestamp(fact.requested_ms / 1000, UTC)
        when = f"{requested:%Y-%m-%d %H:%M:%S}"
        table.add_row(fact.id, fact.state, when, str(fact.records), doing(fact), fact.reason)
    Console().print(table)


@app.command()
def submit(
    stream: Annotated[str, typer.Argument(help="Stream of the configuration.")],
    rows: Annotated[int | None, typer.Option(min=1, help="Newest records to read; default retrain.max_rows.")] = None,
    reason: Annotated[str, typer.Option(help="What `narrows jobs list` shows.")] = "asked for by hand",
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; exit 1 unless promoted.")] = False,
    config: ConfigFile = None, json: Json = False,
) -> None:
    """Ask for a new model of a stream, from the newest records of its topic.

    Example: narrows jobs submit pump --rows 200000 --wait
    """
    tree = load_config(config)
    if stream not in tree.streams:
        raise BadInput(f"no stream {stream!r} in the configuration; there are {', '.join(tree.streams) or 'none'}")
    facts = tree.streams[stream]
    champion = Registry(tree.registry.path).champion(stream)
    jobs = job_queue(tree)
    request = RetrainRequest(
        stream=stream, topic=facts.topic, contract_hash=facts.contract.hash, reason=reason,
        ranges=newest_ranges(tree.kafka.client_settings(), facts.topic, rows or facts.retrain.max_rows),
        champion=champion.digest if champion is not None else None, requested_ms=time.time_ns() // 1_000_000,
    )
    submitted = jobs.submit(request)
    if not wait:
        print(msgspec.json.encode(submitted).decode() if json else f"{submitted.job_id} {submitted.state}")
        return
    job = jobs.job(submitted.job_id)
    while job.state in ("queued", "started", "scheduled", "deferred"):
        time.sleep(POLL_S)
        job = jobs.job(submitted.job_id)
    print(msgspec.json.encode(job).decode() if json else f"{job.id} {job.state}: {doing(job)}")
    if job.outcome != "promoted":
        raise typer.Exit(1)


@app.command()
def cancel(
    job: Annotated[str, typer.Argument(help="Id, from `narrows jobs list`.")], config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Take a waiting job out of the queue, or stop a running one; the champion stays.

    Example: narrows jobs cancel retrain-pump-1a2b3c-0123456789ab
    """
    state = job_queue(load_config(config)).cancel(job)
    print(msgspec.json.encode({"job_id": job, "state": state}).decode() if json else f"{job} {state}")


def doing(fact: JobFacts) -> str:
    """What a job does or did, in a few words."""
    if fact.result is not None:
        faults = "; ".join(fact.result.get("faults", ()))
        return f"{fact.outcome} {str(fact.result.get('digest', ''))[:12]}{faults}".strip()
    if fact.error:
        return fact.error
    share = "" if fact.progress is None else f" {fact.progress:.0%}"
    return fact.stage + share if fact.state == "started" else ""
