"""Every family keeps the same contract: shapes, the newest row, ONNX that says the same, masked losses."""

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pipeline.errors import BadBundle  # noqa: E402
from pipeline.scoring.latents import LatentDecoder, decoder_graph  # noqa: E402
from training import export, loop  # noqa: E402
from training.losses import Batch, contraction, corrupt, reconstruction  # noqa: E402
from training.models import BY_NAME, Shape  # noqa: E402
from training.models.base import Autoencoder  # noqa: E402
from training.recipe import Recipe  # noqa: E402
from training.windows import Windows  # noqa: E402

SHAPE = Shape(rows=8, inputs=4, scored=(0, 2, 3), latent=5)
SPECS = [*[{"model": name} for name in BY_NAME], {"model": "recurrent", "cell": "lstm"},
         {"model": "conv", "plane": True}, {"model": "dense", "norm": "batch", "dropout": 0.2},
         {"model": "conv", "norm": "layer"}]


def ready(spec: dict[str, object]) -> Autoencoder:
    recipe = Recipe(**spec)  # type: ignore[arg-type]
    torch.manual_seed(3)
    model = BY_NAME[recipe.model](SHAPE, recipe)
    x = torch.randn(64, SHAPE.rows, SHAPE.inputs)
    model.begin(x, x[:, :, list(SHAPE.scored)])
    return model.eval()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "-".join(map(str, spec.values())))
def test_a_window_gives_a_latent_and_the_scored_channels_and_newest_is_the_last_row(spec: dict[str, object]) -> None:
    model = ready(spec)
    x = torch.randn(7, SHAPE.rows, SHAPE.inputs)
    rebuilt, z = model(x)
    assert rebuilt.shape == (7, 8, 3)
    assert z.shape == (7, 5)
    torch.testing.assert_close(model.newest(z), rebuilt[:, -1], atol=1e-5, rtol=1e-5)


@cache
def exported(**spec: object) -> bytes:
    """One export of each, which takes seconds."""
    return export.to_onnx(ready(spec))


@pytest.mark.parametrize("spec", SPECS[:-2], ids=lambda spec: "-".join(map(str, spec.values())))
def test_the_exported_file_says_what_torch_says_at_every_batch(spec: dict[str, object]) -> None:
    model = ready(spec)
    content = exported(**spec)
    windows = np.random.default_rng(0).normal(size=(40, SHAPE.rows, SHAPE.inputs)).astype(np.float32)
    assert b"training/export.py" not in content                      # the digest knows no folder of this machine
    worst = export.parity(model, content, windows)
    assert set(worst) == {1, 2, 17, 256}
    assert max(worst.values()) <= 1e-5


@pytest.mark.parametrize("name", BY_NAME)
def test_every_family_has_a_decoder_that_stands_alone(name: str) -> None:
    model = ready({"model": name})
    rebuilt, z = model(torch.randn(40, SHAPE.rows, SHAPE.inputs))
    alone = LatentDecoder(decoder_graph(export.to_onnx(model))).windows(z.detach().numpy())
    assert np.abs(alone - rebuilt.detach().numpy()).max() < 0.05 * rebuilt.abs().max()


def test_an_export_of_other_sizes_is_refused() -> None:
    content = exported(model="dense")
    with pytest.raises(BadBundle, match="the stream needs"):
        export.check_shapes(content, SHAPE.rows, SHAPE.inputs, SHAPE.sensors, SHAPE.latent + 1)


def test_dense_begins_as_pca() -> None:
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(400, 3)) @ rng.normal(size=(3, 48)) + 0.1 * rng.normal(size=(400, 48))).astype(np.float32)
    shape = Shape(rows=12, inputs=4, scored=(0, 1, 2, 3), latent=3)
    model = BY_NAME["dense"](shape, Recipe(model="dense"))
    windows = torch.from_numpy(x).unflatten(1, (12, 4))
    model.begin(windows, windows)
    centred = x - x.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    pca = np.mean((centred - centred @ axes.T @ axes) ** 2)
    ours = float(((model.eval()(windows)[0] - windows) ** 2).mean().detach())
    assert ours == pytest.approx(pca, rel=1e-3)


def test_a_missing_target_passes_no_loss_and_no_gradient() -> None:
    rebuilt = torch.zeros(2, 3, 1, requires_grad=True)
    target = torch.tensor([[[1.0], [2.0], [0.0]], [[1.0], [1.0], [1.0]]])
    weight = torch.tensor([[[1.0], [1.0], [0.0]], [[1.0], [1.0], [1.0]]])
    loss = reconstruction("mse", rebuilt, Batch(target, target, weight))
    loss.backward()
    assert float(loss.detach()) == pytest.approx((1 + 4 + 1 + 1 + 1) / 5)
    assert rebuilt.grad is not None
    assert float(rebuilt.grad[0, 2, 0]) == 0.0


def test_the_newest_row_counts_as_many_rows_as_the_recipe_says() -> None:
    rows = np.zeros((5, 1), dtype=np.float32)
    rows[-1] = 1.0
    windows = Windows(rows, np.array([4]), 5, np.array([0]))
    batch = loop.make_batch(windows, np.array([0]), Recipe(newest_weight=4.0), torch.device("cpu"))
    assert float(reconstruction("mse", torch.zeros(1, 5, 1), batch)) == pytest.approx(4 / 8)


def test_noise_and_blanks_touch_the_input_and_never_the_target() -> None:
    x = torch.ones(100, 4, 2)
    noisy = corrupt(x, Recipe(denoise=0.5))
    blanked = corrupt(x, Recipe(drop_inputs=0.25))
    assert 0.4 < float((noisy - x).std()) < 0.6
    assert 0.15 < float((blanked == 0).float().mean()) < 0.35
    assert bool((x == 1).all())


def test_the_contraction_of_a_linear_encoder_is_the_norm_of_its_weights() -> None:
    weights = torch.randn(6, 4)
    x = torch.randn(20_000, 4, requires_grad=True)
    estimate = float(contraction(x @ weights.T, x).detach())
    assert estimate == pytest.approx(float(weights.square().sum()), rel=0.05)
