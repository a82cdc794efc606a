"""Training of narrows' models. `import training` brings no torch; the names below bring it when they are used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.estimator import AutoencoderModel
    from training.recipe import Recipe

__all__ = ["AutoencoderModel", "Recipe"]


def __getattr__(name: str) -> Any:
    if name == "AutoencoderModel":
        from training.estimator import AutoencoderModel

        return AutoencoderModel
    if name == "Recipe":
        from training.recipe import Recipe

        return Recipe
    raise AttributeError(f"module 'training' has no attribute {name!r}")
