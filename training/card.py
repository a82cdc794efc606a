"""The model card: what a model is, what it was made from, how good it is, what it can't do. Markdown."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline.registry.bundle import Bundle

MOST_NAMES = 5    # files or devices that a line names
WORDS = {         # of the manifest's facts, for people
    "rows": "held-out rows", "threshold": "threshold of the score",
    "nominal_share": "share of normal rows that is meant to lie over the threshold",
    "held_out_share": "share of held-out rows over a threshold from other devices, or other stretches of time",
    "moved_share": "share of the newest rows far above nearly all of those before them",
    "share_of_all": "share of all held-out rows over the threshold, devices set aside among them",
    "raised": "the threshold was raised by a factor of", "extrapolated": "extrapolated beyond what the rows can verify",
    "lowest_verified_share": "lowest share that the rows can verify",
    "groups": "covariances, one a device and the fleet's", "set_aside": "devices set aside, which set no threshold",
    "best": "epoch whose weights were kept, 0 the start", "first_loss": "held-out loss at the start",
    "best_loss": "held-out loss that was kept", "stopped": "stopped by",
    "parity": "largest difference of the exported model from torch",
}


def card(
    bundle: Bundle, figures: Mapping[str, float] | None = None, probed: Mapping[str, float] | None = None
) -> str:
    """The model card: what it is, what it was made from, how good it is, what it can't do. Markdown."""
    manifest, contract = bundle.manifest, bundle.contract
    data_facts, calibration = manifest.data, manifest.calibration
    lines = [
        f"# {manifest.family} {manifest.short}", "",
        f"Digest `{manifest.digest}`, contract `{manifest.contract_hash[:12]}`, seed {manifest.seed}"
        + (f", trained on from `{manifest.parent[:12]}`." if manifest.parent else ", trained from scratch."), "",
        "## Data", "",
        *_facts({
            "rows": data_facts.get("rows"), "devices": data_facts.get("devices"),
            **{name: time_of(data_facts[f"{name}_ts_ms"]) for name in ("first", "last")
               if data_facts.get(f"{name}_ts_ms") is not None},
            "rows masked": data_facts.get("masked_rows"),
            "files": _some(data_facts.get("files", [])) or None, "topic": data_facts.get("topic"),
            "offsets": ", ".join(
                f"[{partition}] {first}:{end}" for partition, (first, end) in data_facts.get("ranges", {}).items()
            ) or None,
            "channels": ", ".join(manifest.sensors),
            "channels that drift, left out of the score": _drifts(data_facts.get("drifted") or {}) or None,
            "inputs only": ", ".join(sorted(set(manifest.inputs) - set(manifest.sensors))) or None,
            "window, memory": f"{contract.window}, {contract.memory} rows of {contract.step_ms} ms"}), "",
        "## Held-out reconstruction (scaled units)", "",
        "| model | latent | newest row | whole window |", "|---|---|---|---|",
        *[f"| {name} | {int(v['latent'])} | {v['newest_mse']:.4f} | {v['window_mse']:.4f} |"
          for name, v in manifest.quality.items() if isinstance(v, dict)], "",
        verdict(manifest.family, manifest.quality), "",
        "## Threshold", "",
        *_facts(_told(calibration)), "",
    ]
    if figures:
        measured = {name: _short(value) for name, value in figures.items()}
        lines += [f"## Measured on the {'labelled ' * ('label_share' in figures)}rows of this report", "",
                  *_facts(measured), ""]
    if probed:
        told = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in probed.items())
        lines += ["## Latent space", "", f"A linear classifier names the kind of held-out windows rightly in: {told}. "
                  "PCA has as many numbers.", ""]
    lines += [
        "## Limits", "",
        "- It knows the regimes that its data show; a new one is an anomaly until it is trained on.",
        "- Thresholds come from held-out rows that were taken for normal; nobody labelled them.",
        f"- A score looks back {contract.memory} rows and no further; slower drifts are for the drift monitor.",
        *(["- The alert rate asked for is rarer than the held-out span can verify; the threshold is extrapolated."]
          if calibration.get("extrapolated") else []),
        "", "## Training", "",
        *_facts({**_told(manifest.training),
                 "recipe": ", ".join(f"{key} {value}" for key, value in manifest.recipe.items()) or None}), "",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in manifest.versions.items()) + ".", "",
    ]
    return "\n".join(lines)


def verdict(family: str, quality: Mapping[str, Any]) -> str:
    """One honest sentence on the model beside the baselines, by the error of the newest row."""
    errors = {name: values["newest_mse"] for name, values in quality.items() if isinstance(values, dict)}
    others = {name: error for name, error in errors.items() if name != family}
    if family not in errors or not others:
        return ""
    better = sorted(name for name, error in others.items() if error < errors[family])
    if not better:
        return f"{family} rebuilds the newest row better than every baseline."
    return (f"{family} does **not** beat {' and '.join(better)} on the newest row. A baseline with a larger latent is "
            "no rival in compression; for detection alone, ask whether it would do.")


def _facts(facts: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in facts.items() if value is not None]


def _told(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's facts in words, those with words first, in the order of WORDS."""
    order = [*(name for name in WORDS if name in facts), *(name for name in facts if name not in WORDS)]
    return {WORDS.get(name, name): _short(facts[name]) for name in order}


def _short(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return _some(value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value == round(value) else f"{value:.5g}"
    return value


def _some(names: Sequence[Any]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(str, names[:MOST_NAMES])) + more


def _drifts(drifted: Mapping[str, Sequence[str]]) -> str:
    """Channels by the devices that they drift in; devices with the same channels together."""
    devices: dict[tuple[str, ...], list[str]] = {}
    for device, channels in drifted.items():
        devices.setdefault(tuple(channels), []).append(device)
    return "; ".join(f"{', '.join(channels)} ({_some(where)})" for channels, where in devices.items())


def time_of(ts_ms: int) -> str:
    """For people."""
    return datetime.fromtimestamp(ts_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
