"""What a stream has in a model's place until there is one: rows come out unscored, for the reason `no_model`.

Rows, blocks without latents and silent devices need no model. The first champion comes in as any other does, at a
commit, and scores at once: what the kept rows leave in its filters is made then.
"""

import numpy as np

from pipeline.core.contract import Contract
from pipeline.core.scaling import Scaling
from pipeline.core.score import Scorer
from pipeline.scoring.session import Session
from pipeline.scoring.stream import BLANK, Model


class NoSession(Session):
    """A session that nobody runs."""

    def __init__(self, contract: Contract) -> None:
        self.provider = "none"
        self.window, self.inputs = contract.window, len(contract.inputs)
        self.members, self.latent, self.runs = 1, 0, 0


def blank_model(contract: Contract) -> Model:
    """A model of the digest `BLANK`, for one contract; equal wherever it is made."""
    channels, sensors = len(contract.channels), len(contract.sensors)
    shape = (1, 1, 1, sensors)
    scorer = Scorer(
        alphas=np.ones(1), length=contract.filter_length, clip=1.0, mean=np.zeros(shape),
        whiten=np.zeros((*shape, sensors)), sd=np.ones(shape), member_threshold=np.ones((1, 1)),
        weight=np.ones((1, 1)), threshold=1.0, shift_mean=np.zeros((1, sensors)),
        shift_whiten=np.zeros((1, sensors, sensors)),
    )
    scaling = Scaling((), np.zeros((1, channels)), np.ones((1, channels)))
    return Model(BLANK, NoSession(contract), scaling, scorer)
