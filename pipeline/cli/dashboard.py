"""`narrows dashboard`: the page on its own."""

import asyncio
import contextlib
import logging
from typing import Annotated

import typer

from pipeline.cli.decode_topic import open_reader
from pipeline.cli.options import ConfigFile
from pipeline.config import Config, load_config
from pipeline.dashboard.page import listen, serve
from pipeline.dashboard.watch import Watch, Watched
from pipeline.errors import BadInput


def dashboard(
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default="dashboard.port")] = None,
    config: ConfigFile = None,
) -> None:
    """Serve the page over the output topics until interrupted. It reads and never commits.

    Example: narrows dashboard --port 8765
    """
    tree = load_config(config)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the page says what is wrong
    watch = open_watch(tree)
    listener = listen(tree.dashboard.host, tree.dashboard.port if port is None else port)
    host, bound = listener.getsockname()[:2]
    print(f"http://{f'[{host}]' if ':' in host else host}:{bound}/", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(watch, listener))


def open_watch(tree: Config) -> Watch:
    """A watch over the configured streams. Raises BadInput where there are none."""
    if not tree.streams:
        raise BadInput("no stream is configured, so there is nothing to show; add one under streams")
    streams = [Watched(name, stream.topic, stream.contract, stream.format) for name, stream in tree.streams.items()]
    topics = {short: tree.kafka.topic(short) for short in ("anomalies", "blocks", "features", "dead-letters")}
    return Watch(tree.kafka.client_settings(), streams, topics, tree.kafka.group, open_reader(tree))
