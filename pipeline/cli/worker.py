"""`narrows worker`: one streaming worker."""

import json
import logging
import sys
import time
from typing import Annotated

import typer

from pipeline.cli.options import ConfigFile
from pipeline.config import load_config


class _JsonLines(logging.Formatter):
    """One JSON object a line, for machines that collect logs."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(level: str) -> None:
    """Plain lines on a terminal, JSON elsewhere; narrows' own at `level`, libraries from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    else:
        handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("pipeline", "training"):
        logging.getLogger(package).setLevel(level.upper())


def worker(
    config: ConfigFile = None,
    member: Annotated[str | None, typer.Option(help="Static name in the group, kept over restarts.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics; 0 takes a free one.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Score, compress and alert on the configured streams until SIGTERM. Start more of them to scale out.

    Example: narrows worker --config narrows.yaml --member worker-1
    """
    import os

    set_up_logging(log_level)
    environ = dict(os.environ)
    if member is not None:
        environ["NARROWS_KAFKA__STATIC_MEMBER"] = member
    if metrics_port is not None:
        environ["NARROWS_WORKER__METRICS_PORT"] = str(metrics_port)
    from pipeline.app import Worker  # Faust takes a second to import: not before the configuration stands

    Worker(load_config(config, environ)).run()
