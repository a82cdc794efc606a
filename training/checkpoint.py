"""The state of a training run in one safetensors file: no pickle, replaced atomically, so a kill loses one epoch.

Weights, best weights and the optimisers' tensors are the file's tensors; history, recipe and the optimisers' plain
numbers its metadata. Random numbers need no state (see training.loop).

Whoever goes on gives the same recipe and the same data, else a run that was killed would end with other weights than
one that was not. A run that diverged has no such end: its state is that of the best epoch, the optimisers begin anew,
and the settings of the descent may change.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import BadInput
from training.history import History
from training.recipe import AFTER_DIVERGING, Recipe

VERSION = "2"


def save(
    path: Path, model: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer], best: Mapping[str, Tensor],
    history: History, recipe: Recipe, *, origin: str = "", is_diverged: bool = False,
) -> None:
    """Write the state beside `path` and move it there.

    origin : what the windows are of, any text.
    is_diverged : the loss was no number; `model` and `history` are those of the best epoch.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        tensors[f"now/{name}"] = tensor
        tensors[f"best/{name}"] = best[name]
    for part, optimiser in optimisers.items():
        plain[part] = {}
        for place, slots in optimiser.state_dict()["state"].items():
            for name, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser/{part}/{place}/{name}"] = value
                elif value is not None:
                    plain[part][f"{place}/{name}"] = value
    metadata = {"version": VERSION, "history": msgspec.json.encode(history).decode(),
                "recipe": msgspec.json.encode(recipe).decode(), "plain": json.dumps(plain),
                "origin": origin, "diverged": "yes" if is_diverged else "no"}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    save_file({name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}, fresh, metadata)
    fresh.replace(path)


def load(
    path: Path, model: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer], recipe: Recipe, *, origin: str = "",
) -> tuple[History, dict[str, Tensor]]:
    """Put weights and optimisers back; returns the history and the best weights.

    After a run that diverged, settings in AFTER_DIVERGING may be others; the history names what they were.
    Raises BadInput for a file that is damaged, of another version, or made from other data or another recipe.
    """
    advice = f"{path}: leave --resume out to begin anew"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"can't read the checkpoint ({error}); {advice}") from error
    if metadata.get("version") != VERSION:
        raise BadInput(f"checkpoint version {metadata.get('version')} is not {VERSION}; {advice}")
    if metadata["origin"] != origin:
        raise BadInput(f"the checkpoint was made from other rows, or by another contract (--window and --memory are of "
                       f"it); {advice}, or give the same ones")
    is_diverged, before = metadata["diverged"] == "yes", msgspec.json.decode(metadata["recipe"], type=Recipe)
    changed = {name: f"{name} was {getattr(before, name)}, is {getattr(recipe, name)}"
               for name in Recipe.__struct_fields__ if getattr(before, name) != getattr(recipe, name)}
    if refused := [told for name, told in changed.items() if not (is_diverged and name in AFTER_DIVERGING)]:
        raise BadInput(f"the checkpoint was made with another recipe ({'; '.join(refused)}); {advice}, or give the "
                       "same settings")
    weights = {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("now/")}
    best = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("best/")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BadInput(f"the checkpoint was made for other data (sizes differ); {advice}") from error
    plain = json.loads(metadata["plain"])
    for part, optimiser in optimisers.items():
        state = optimiser.state_dict()
        slots: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimiser/{part}/"):
                place, slot = name.removeprefix(f"optimiser/{part}/").split("/")
                slots.setdefault(int(place), {})[slot] = tensor
        for name, value in plain.get(part, {}).items():
            place, slot = name.split("/")
            slots.setdefault(int(place), {})[slot] = value
        state["state"] = slots
        optimiser.load_state_dict(state)
    history = msgspec.json.decode(metadata["history"], type=History)
    if is_diverged:
        history.restarts.append(f"after epoch {history.best}: {'; '.join(changed.values()) or 'the same settings'}")
    return history, best
