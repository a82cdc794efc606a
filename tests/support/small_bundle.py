"""A small bundle for tests of what stores and moves bundles: every file is there, the model runs nowhere."""

from pathlib import Path

import numpy as np

from pipeline.core.contract import Channel, Contract
from pipeline.core.scaling import Scaling
from pipeline.core.score import Scorer
from pipeline.registry.bundle import Bundle, Golden, write_bundle

CONTRACT = Contract(channels=(Channel(name="a"), Channel(name="b")), window=4, memory=8)


def write_small_bundle(folder: Path, seed: int = 0, contract: Contract = CONTRACT) -> Bundle:
    """Another seed is another digest."""
    channels = len(contract.sensors)
    unit = np.broadcast_to(np.eye(channels), (1, 1, 1, channels, channels))
    scorer = Scorer(
        alphas=np.array([0.5]), length=contract.filter_length, clip=6.0, mean=np.zeros((1, 1, 1, channels)),
        whiten=unit, sd=np.ones((1, 1, 1, channels)), member_threshold=np.ones((1, 1)),
        weight=np.ones((1, 1)), threshold=1.0, shift_mean=np.zeros((1, channels)), shift_whiten=unit[0, 0],
    )
    width = len(contract.names)
    golden = Golden(
        x=np.zeros((1, contract.window, width), np.float32), newest=np.zeros((1, 1, channels), np.float32),
        latent=np.zeros((1, 2), np.float32), residuals=np.zeros((1, contract.filter_length, channels), np.float32),
        score=np.zeros(1, np.float32),
    )
    return write_bundle(
        folder, contract=contract, scaling=Scaling((), np.zeros((1, width)), np.ones((1, width))), scorer=scorer,
        model=b"no real model", golden=golden, family="raw", members=("raw",), seed=seed,
    )
