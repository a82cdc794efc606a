"""Laws of the training loop: deterministic from a seed, resumed equals never stopped, the best weights come back."""

import math
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402

from pipeline.errors import BadInput  # noqa: E402
from training import loop  # noqa: E402
from training.history import Epoch, History  # noqa: E402
from training.models import BY_NAME, Shape  # noqa: E402
from training.models.base import Autoencoder  # noqa: E402
from training.recipe import Recipe  # noqa: E402
from training.windows import Windows  # noqa: E402

SHAPE = Shape(rows=8, inputs=3, scored=(0, 1, 2), latent=3)


class Killed(Exception):
    """Stands for a kill between two epochs."""


def parts(holes: float = 0.0) -> tuple[Windows, Windows]:
    rng = np.random.default_rng(0)
    steps = np.arange(400)
    rows = np.stack([np.sin(steps / 5 + k) for k in range(3)], axis=1) + 0.1 * rng.normal(size=(400, 3))
    rows[rng.random(rows.shape) < holes] = np.nan
    rows = rows.astype(np.float32)
    scored = np.arange(3)
    return Windows(rows, np.arange(7, 300), 8, scored), Windows(rows, np.arange(310, 400), 8, scored)


def fresh(recipe: Recipe) -> Autoencoder:
    loop.seed_everything(recipe.seed)
    return BY_NAME[recipe.model](SHAPE, recipe)


def weights(model: Autoencoder) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("recipe", [
    Recipe(model="dense", epochs=4, dropout=0.1, linear_path=False), Recipe(model="vae", epochs=4, optimiser="adamw"),
    Recipe(model="adversarial", epochs=4, optimiser="nesterov"), Recipe(model="conv", epochs=4, norm="batch"),
    Recipe(model="dense", epochs=4, optimiser="rmsprop", schedule="plateau", patience=2, denoise=0.2),
], ids=lambda recipe: f"{recipe.model}-{recipe.optimiser}")
@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_and_resumed_run_ends_with_the_weights_of_one_that_was_not(
    recipe: Recipe, killed_after: int, tmp_path: Path
) -> None:
    train, held_out = parts(holes=0.02)
    whole = fresh(recipe)
    history = loop.fit(whole, train, held_out, recipe)

    def kill(epoch: Epoch, _: History) -> None:
        if epoch.number == killed_after:
            raise Killed

    state = tmp_path / "run.checkpoint"
    with pytest.raises(Killed):
        loop.fit(fresh(recipe), train, held_out, recipe, progress=kill, state=state)
    resumed = fresh(msgspec.structs.replace(recipe, seed=99))
    resumed.recipe = recipe
    again = loop.fit(resumed, train, held_out, recipe, state=state, resume=True)
    assert [line.held_out for line in again.epochs] == [line.held_out for line in history.epochs]
    for name, array in weights(whole).items():
        np.testing.assert_array_equal(weights(resumed)[name], array, err_msg=name)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    train, held_out = parts()
    made = []
    for seed in (1, 1, 2):
        recipe = Recipe(model="vae", epochs=2, seed=seed)
        model = fresh(recipe)
        loop.fit(model, train, held_out, recipe)
        made.append(weights(model))
    for name in made[0]:
        np.testing.assert_array_equal(made[0][name], made[1][name])
    assert any((made[0][name] != made[2][name]).any() for name in made[0])


def test_the_weights_that_come_back_are_those_of_the_best_epoch() -> None:
    train, held_out = parts()
    recipe = Recipe(model="dense", epochs=12, rate=0.05, patience=3, schedule="constant", linear_path=False)
    seen: dict[int, dict[str, np.ndarray]] = {}
    model = fresh(recipe)

    def keep(epoch: Epoch, _: History) -> None:
        seen[epoch.number] = weights(model)

    history = loop.fit(model, train, held_out, recipe, progress=keep)
    for name, array in weights(model).items():
        np.testing.assert_array_equal(array, seen[history.best][name])
    missed = loop.evaluate(model, held_out, recipe, torch.device("cpu"))
    assert missed == pytest.approx(history.best_loss, rel=1e-6)


def test_a_loss_that_is_not_a_number_stops_with_the_place_and_the_last_good_weights() -> None:
    train, held_out = parts()
    recipe = Recipe(model="dense", optimiser="sgd", rate=50.0, clip=0.0, epochs=5, linear_path=False)
    model = fresh(recipe)
    with pytest.raises(loop.TrainingDiverged, match=r"batch \d+ of epoch \d+.*recipe.rate"):
        loop.fit(model, train, held_out, recipe)
    assert all(np.isfinite(array).all() for array in weights(model).values())


def test_what_an_earlier_run_left_is_not_taken_for_the_state_of_this_one(tmp_path: Path) -> None:
    train, held_out = parts()
    state = tmp_path / "run.checkpoint"
    loop.fit(fresh(Recipe(model="dense", epochs=1)), train, held_out, Recipe(model="dense", epochs=1), state=state)
    recipe = Recipe(model="dense", optimiser="sgd", rate=50.0, clip=0.0, epochs=5, linear_path=False)
    with pytest.raises(loop.TrainingDiverged):
        loop.fit(fresh(recipe), train, held_out, recipe, state=state)
    assert not state.exists()


def test_a_checkpoint_of_another_recipe_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    train, held_out = parts()
    state = tmp_path / "run.checkpoint"
    recipe = Recipe(model="dense", epochs=1)
    loop.fit(fresh(recipe), train, held_out, recipe, state=state)
    other = Recipe(model="dense", epochs=1, rate=1e-4)
    with pytest.raises(BadInput, match="another recipe"):
        loop.fit(fresh(other), train, held_out, other, state=state, resume=True)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(BadInput, match="can't read the checkpoint"):
        loop.fit(fresh(recipe), train, held_out, recipe, state=state, resume=True)


RISING = Recipe(model="dense", optimiser="sgd", rate=100.0, warmup_steps=2000, schedule="constant", clip=0.0,
                epochs=40, patience=40, linear_path=False)   # good for some epochs, and then far too fast


def kept_weights(state: Path) -> dict[str, np.ndarray]:
    """The weights that a run goes on from."""
    with safe_open(state, framework="np") as file:
        names = [name for name in file.keys() if name.startswith("now/")]  # noqa: SIM118 (no mapping)
        return {name.removeprefix("now/"): file.get_tensor(name) for name in names}


def diverged(state: Path) -> tuple[History, dict[str, np.ndarray]]:
    """A run that diverged, with its checkpoint in `state`: its epochs, and the best weights."""
    train, held_out = parts()
    model, seen = fresh(RISING), History()

    def keep(_: Epoch, history: History) -> None:
        seen.epochs, seen.best, seen.best_loss = list(history.epochs), history.best, history.best_loss

    with pytest.raises(loop.TrainingDiverged, match=rf"best weights so far, of epoch \d+, are kept in {state}"):
        loop.fit(model, train, held_out, RISING, progress=keep, state=state, origin="rows")
    assert 1 <= seen.best < len(seen.epochs)
    return seen, weights(model)


def test_a_run_that_diverged_goes_on_from_its_best_epoch_with_another_descent(tmp_path: Path) -> None:
    state = tmp_path / "run.checkpoint"
    before, best = diverged(state)
    train, held_out = parts()
    slower = msgspec.structs.replace(RISING, rate=0.02, warmup_steps=0, schedule="cosine", clip=1.0,
                                     epochs=before.best + 4)
    with pytest.raises(BadInput, match=r"another recipe \(epochs was 40, is \d+\)"):
        loop.fit(fresh(slower), train, held_out, slower, state=state, resume=True, origin="rows")
    slower = msgspec.structs.replace(slower, epochs=RISING.epochs)
    kept = kept_weights(state)
    for name, array in best.items():
        np.testing.assert_array_equal(kept[name], array, err_msg=name)
    history = loop.fit(fresh(slower), train, held_out, slower, state=state, resume=True, origin="rows")
    assert history.epochs[: before.best] == before.epochs[: before.best]
    assert [epoch.number for epoch in history.epochs] == list(range(1, RISING.epochs + 1))
    assert history.best_loss < before.best_loss
    assert history.restarts == [
        f"after epoch {before.best}: rate was 100.0, is 0.02; schedule was constant, is cosine; "
        "warmup_steps was 2000, is 0; clip was 0.0, is 1.0"]


def test_a_killed_run_that_had_diverged_before_is_as_any_other(tmp_path: Path) -> None:
    train, held_out = parts()
    slower = msgspec.structs.replace(RISING, rate=0.02, warmup_steps=0)
    made = []
    for kills in (0, 1):
        state = tmp_path / f"{kills}.checkpoint"
        diverged(state)

        def kill(epoch: Epoch, _: History) -> None:
            raise Killed

        if kills:
            with pytest.raises(Killed):
                loop.fit(fresh(slower), train, held_out, slower, state=state, resume=True, origin="rows", progress=kill)
            other = msgspec.structs.replace(slower, rate=0.01)
            with pytest.raises(BadInput, match="another recipe"):    # it goes well: nothing may change any more
                loop.fit(fresh(other), train, held_out, other, state=state, resume=True, origin="rows")
        model = fresh(slower)
        loop.fit(model, train, held_out, slower, state=state, resume=True, origin="rows")
        made.append(weights(model))
    for name in made[0]:
        np.testing.assert_array_equal(made[0][name], made[1][name], err_msg=name)


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": "conv"}, "model was dense, is conv"), ({"latent": 5}, "latent was 0, is 5"),
    ({"hidden": (8,)}, "hidden was"), ({"loss": "huber"}, "loss was mse"), ({"seed": 1}, "seed was 0"),
    ({"origin": "others"}, "other rows"),
], ids=lambda one: next(iter(one)) if isinstance(one, dict) else "")
def test_what_changes_the_meaning_of_the_weights_is_refused_after_a_divergence_too(
    changes: dict, message: str, tmp_path: Path
) -> None:
    state = tmp_path / "run.checkpoint"
    diverged(state)
    train, held_out = parts()
    origin = changes.pop("origin", "rows")
    other = msgspec.structs.replace(RISING, rate=0.02, **changes)
    with pytest.raises(BadInput, match=message) as refused:
        loop.fit(fresh(other), train, held_out, other, state=state, resume=True, origin=origin)
    assert "rate was" not in str(refused.value)
    assert "leave --resume out" in str(refused.value)


@pytest.mark.parametrize("name", ["constant", "cosine", "step", "exponential", "plateau"])
def test_a_schedule_warms_up_never_exceeds_the_rate_and_falls(name: str) -> None:
    recipe = Recipe(schedule=name, warmup_steps=10, epochs=5)  # type: ignore[arg-type]
    shares = [loop.schedule(recipe, step, 20) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) <= 1.0
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(shares[10:]))
    assert not any(math.isnan(share) for share in shares)
