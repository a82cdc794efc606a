"""`narrows feedback`: say whether an alert was right."""

from typing import Annotated

import msgspec
import typer

from pipeline.cli.options import ConfigFile
from pipeline.config import load_config
from pipeline.errors import BadInput
from pipeline.topics import Feedback, write_record


def feedback(
    episode: Annotated[str, typer.Argument(help="The alert's episode_id.", show_default=False)],
    is_true: Annotated[
        bool | None, typer.Option("--true/--false", help="Whether there was something.", show_default=False)
    ] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Take back what was said.")] = False,
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
    config: ConfigFile = None,
) -> None:
    """Mark an alert as true or false. The next retraining leaves its rows out, and makes a false pattern silent.

    Example: narrows feedback 5f0c2b7e9a3d41c8 --false --note "filter change"
    """
    if (is_true is None) != forget:
        raise BadInput("give one of --true, --false and --forget")
    tree = load_config(config)
    said = None if is_true is None else msgspec.json.encode(Feedback(episode_id=episode, is_true=is_true, note=note))
    write_record(tree.kafka.client_settings(), tree.kafka.topic("feedback"), episode, said)
    print(f"{episode}: {'forgotten' if forget else 'true' if is_true else 'false'}; the next retraining heeds it")
