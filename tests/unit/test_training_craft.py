"""Each setting of the recipe does what its name says: a setting that were left out would fail its test here."""

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training import loop  # noqa: E402
from training.losses import Batch, objective, reconstruction  # noqa: E402
from training.models import BY_NAME, Shape, initialise  # noqa: E402
from training.models.base import Autoencoder  # noqa: E402
from training.models.vae import Variational  # noqa: E402
from training.recipe import Recipe  # noqa: E402
from training.windows import Windows  # noqa: E402

SHAPE = Shape(rows=8, inputs=2, scored=(0, 1), latent=3)


def windows() -> Windows:
    steps = np.arange(400)
    rows = np.stack([np.sin(steps / 5), np.cos(steps / 7)], axis=1).astype(np.float32)
    return Windows(rows, np.arange(7, 400), 8, np.arange(2))


def model_of(recipe: Recipe) -> Autoencoder:
    torch.manual_seed(0)
    model = BY_NAME[recipe.model](SHAPE, recipe)
    initialise(model, recipe.init)
    return model


def batch_of(recipe: Recipe) -> Batch:
    return loop.make_batch(windows(), np.arange(64), recipe, torch.device("cpu"))


def loss_with(**settings: object) -> float:
    """One evaluation of the objective, always with the same weights and random numbers."""
    recipe = Recipe(linear_path=False, hidden=(16,), **settings)  # type: ignore[arg-type]
    model = model_of(recipe).eval()
    torch.manual_seed(1)
    return float(model.objective("autoencoder", batch_of(recipe), 10).detach())


@pytest.mark.parametrize(("name", "kind", "want"), [
    ("sgd", "SGD", {"momentum": 0, "nesterov": False}), ("momentum", "SGD", {"momentum": 0.9, "nesterov": False}),
    ("nesterov", "SGD", {"momentum": 0.9, "nesterov": True}), ("adam", "Adam", {}), ("adamw", "AdamW", {}),
    ("rmsprop", "RMSprop", {}),
])
def test_an_optimiser_is_the_one_that_was_named_decays_weights_and_lowers_the_loss(
    name: str, kind: str, want: dict[str, object]
) -> None:
    rate = 0.05 if kind == "SGD" else 2e-3
    recipe = Recipe(optimiser=name, l2=1e-4, rate=rate, linear_path=False, epochs=3, hidden=(16,))  # type: ignore[arg-type]
    model = model_of(recipe)
    made = loop.make_optimiser(list(model.parameters()), recipe)
    assert type(made).__name__ == kind
    assert {**want, "weight_decay": 1e-4}.items() <= made.param_groups[0].items()
    history = loop.fit(model, windows(), windows(), recipe)
    assert history.best_loss < 0.97 * history.first_loss


@pytest.mark.parametrize("how", ["xavier", "he", "orthogonal"])
def test_weights_begin_as_the_named_rule_draws_them(how: str) -> None:
    model = model_of(Recipe(init=how, hidden=(64,), linear_path=False))  # type: ignore[arg-type]
    first = model.down[0]
    assert isinstance(first, torch.nn.Linear)
    weight = first.weight.detach()                                   # (64,16)
    assert float(first.bias.detach().abs().max()) == 0
    if how == "orthogonal":
        torch.testing.assert_close(weight.T @ weight, torch.eye(16), atol=1e-4, rtol=0)
    elif how == "xavier":
        assert 0.95 * (6 / 80) ** 0.5 < float(weight.abs().max()) <= (6 / 80) ** 0.5
    else:
        assert float(weight.std()) == pytest.approx((2 / 16) ** 0.5, rel=0.1)


@pytest.mark.parametrize("family", ["dense", "conv", "vae", "adversarial", "recurrent", "recursive"])
@pytest.mark.parametrize("setting", [{"sparse": 1.0}, {"contractive": 1.0}, {"l1": 1.0}])
def test_any_family_pays_for_what_the_recipe_punishes(family: str, setting: dict[str, float]) -> None:
    assert loss_with(model=family, **setting) > loss_with(model=family) + 1e-4


@pytest.mark.parametrize("family", ["dense", "conv", "vae", "adversarial", "recurrent", "recursive"])
@pytest.mark.parametrize("setting", [{"denoise": 2.0}, {"drop_inputs": 0.5}])
def test_any_family_learns_from_spoilt_inputs(family: str, setting: dict[str, float]) -> None:
    assert loss_with(model=family, **setting) != loss_with(model=family)


def test_a_penalty_that_was_paid_in_training_is_smaller_afterwards() -> None:
    sizes = {}
    for name in ("none", "l1", "l2"):
        recipe = Recipe(linear_path=False, hidden=(16,), epochs=8, **({name: 5e-3} if name != "none" else {}))
        model = model_of(recipe)
        loop.fit(model, windows(), windows(), msgspec.structs.replace(recipe, patience=99))
        sizes[name] = float(sum(weight.detach().abs().sum() for weight in model.parameters()))
    assert sizes["l1"] < 0.9 * sizes["none"]
    assert sizes["l2"] < 0.95 * sizes["none"]


@pytest.mark.parametrize(("kind", "want"), [("mse", 2.5), ("mae", 1.5), ("huber", 1.0)])
def test_a_loss_is_the_one_that_was_named(kind: str, want: float) -> None:
    target = torch.tensor([[[1.0], [2.0]]])
    assert float(reconstruction(kind, torch.zeros(1, 2, 1), Batch(target, target, None))) == pytest.approx(want)


def test_the_least_cross_entropy_lies_at_the_target_itself() -> None:
    target = torch.tensor([[[-1.5], [0.2], [3.0]]])
    rebuilt = target.clone().requires_grad_()
    loss = reconstruction("cross_entropy", rebuilt, Batch(target, target, None))
    loss.backward()
    assert rebuilt.grad is not None
    assert float(rebuilt.grad.abs().max()) < 1e-6
    assert float(reconstruction("cross_entropy", target + 0.5, Batch(target, target, None))) > float(loss.detach())


def test_the_kl_term_warms_up_in_a_straight_line() -> None:
    model = model_of(Recipe(model="vae", beta=1.0, beta_warmup=5))
    assert isinstance(model, Variational)
    x = batch_of(model.recipe).x
    shares = [float(model.draw(x, epoch)[1].detach()) for epoch in (0, 1, 4, 9)]
    assert shares[1] == pytest.approx(2 * shares[0], rel=1e-5)
    assert shares[2] == pytest.approx(5 * shares[0], rel=1e-5)
    assert shares[3] == pytest.approx(shares[2], rel=1e-5)


def test_one_step_is_no_longer_than_the_clipped_gradient_allows() -> None:
    moved = {}
    for clip in (0.0, 0.01):
        recipe = Recipe(optimiser="sgd", rate=1.0, clip=clip, linear_path=False, schedule="constant", batch=512)
        model = model_of(recipe)
        before = torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])
        loop.Runner(model, windows(), recipe, torch.device("cpu")).epoch(1, 1)
        moved[clip] = float((torch.cat([weight.detach().flatten() for weight in model.parameters()]) - before).norm())
    assert moved[0.01] <= 0.01 * 1.001
    assert moved[0.0] > 0.02


@pytest.mark.parametrize("family", ["dense", "conv", "vae"])
def test_dropout_and_batch_norm_act_in_training_alone(family: str) -> None:
    recipe = Recipe(model=family, dropout=0.5, norm="batch", linear_path=False)  # type: ignore[arg-type]
    model = model_of(recipe)
    kinds = {type(layer).__name__ for layer in model.modules()}
    assert "Dropout" in kinds
    assert kinds & {"BatchNorm1d", "BatchNorm2d"}
    x = batch_of(recipe).x
    assert not torch.equal(model.train()(x)[0], model(x)[0])
    assert torch.equal(model.eval()(x)[0], model(x)[0])


def test_the_objective_of_a_plain_recipe_is_its_reconstruction_error() -> None:
    recipe = Recipe(linear_path=False)
    model, batch = model_of(recipe).eval(), batch_of(recipe)
    assert float(objective(model, batch, 1).detach()) == pytest.approx(
        float(reconstruction("mse", model(batch.x)[0], batch).detach()))
