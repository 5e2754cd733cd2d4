"""The search space of a sweep: a Python file with suggest(trial), GRID or POINTS."""

import hashlib
import importlib.util
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from simclr_jax.config import adopt_start, check_field, checks, default, flatten, set_field
from simclr_jax.errors import SimclrError, one_line

Settings = dict[str, Any]  # {"loss.temperature": 0.1, ...}


class Space(NamedTuple):
    """The settings to try: those that `suggest(trial)` draws, or else the listed `points`."""

    path: str
    suggest: Callable[[Any], Settings] | None
    points: tuple[Settings, ...]


def load(path: str) -> Space:
    """The search space that a Python file defines.

    The file defines one of: `suggest(trial)`, which returns settings drawn by Optuna; `GRID`, a dict from
    field to values, whose combinations are the points; `POINTS`, a list of settings.

    Raises:
      SimclrError: the file is missing, does not run, or has none of these.
    """
    if not Path(path).is_file():
        raise SimclrError(f"--space={path}: no such file")
    spec = importlib.util.spec_from_file_location("sweep_space", path)
    if spec is None or spec.loader is None:
        raise SimclrError(f"--space={path}: must be a Python file, .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SimclrError(f"--space={path}: {type(error).__name__}: {one_line(error)}") from None
    has = [name for name in ("suggest", "GRID", "POINTS") if hasattr(module, name)]
    if not has or {"GRID", "POINTS"} <= set(has):
        found = " and ".join(has) or "neither"
        raise SimclrError(f"--space={path}: must have suggest(trial), or GRID or POINTS; it has {found}")
    points = _points(path, module)
    for field in sorted({field for point in points for field in point}):
        _check_field(path, field)
    return Space(path, getattr(module, "suggest", None), points)


def _points(path: str, module: Any) -> tuple[Settings, ...]:
    grid, listed = getattr(module, "GRID", None), getattr(module, "POINTS", ())
    if grid is not None:
        if not isinstance(grid, dict) or not all(isinstance(v, tuple | list) and v for v in grid.values()):
            raise SimclrError(f"--space={path}: GRID must be a dict from field to a tuple of values")
        return tuple(dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))
    if not isinstance(listed, tuple | list) or not all(isinstance(point, dict) for point in listed):
        raise SimclrError(
            f"--space={path}: POINTS must be a list of settings, each a dict from field to value"
        )
    return tuple({name(point): point for point in listed}.values())


def _check_field(path: str, field: str) -> None:
    try:
        check_field(field)
    except SimclrError as error:
        raise SimclrError(f"--space={path}: {error}") from None


def drawn(space: Space, trial: Any) -> Settings:
    """The settings that `suggest` draws; turns exceptions in it into one line."""
    assert space.suggest is not None
    try:
        settings = space.suggest(trial)
    except Exception as error:
        raise SimclrError(
            f"--space={space.path}: suggest(): {type(error).__name__}: {one_line(error)}"
        ) from None
    if not isinstance(settings, dict):
        raise SimclrError(f"--space={space.path}: suggest() must return a dict from field to value")
    for field in settings:
        _check_field(space.path, field)
    return settings


def apply(config: ConfigDict, settings: Settings) -> ConfigDict:
    """A copy of the config with the fields set, validated.

    Raises:
      SimclrError: a value is not of its field's type, or out of range.
    """
    config = config.copy_and_resolve_references()
    for field, value in settings.items():
        try:
            set_field(config, field, value)
        except (TypeError, ValueError):
            kind = type(flatten(default())[field]).__name__
            raise SimclrError(f"config.{field}={value!r}: must be of type {kind}") from None
    checks.validate(adopt_start(config))
    return config


# ---- names --------------------------------------------------------------------------------------


def name(settings: Settings) -> str:
    """A readable and unique name of the settings that is valid for a folder.

    If it had to drop digits or characters, it ends with a hash of the exact settings.
    """
    pairs = sorted(settings.items())
    text = ",".join(f"{field}={_short(value)}" for field, value in pairs) or "defaults"
    if len(text) > 150 or not all(_exact(value) for _, value in pairs):
        digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:8]
        text = f"{text[:150]},{digest}"
    return text


def _short(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "-".join(map(_short, value)) or "none"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII)


def _exact(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(isinstance(v, int | float) and v >= 0 and _exact(v) for v in value)
    return float(_short(value)) == value if isinstance(value, float) else _short(value) == str(value)


# ---- parameters ---------------------------------------------------------------------------------


def distributions(points: tuple[Settings, ...]) -> dict[str, Any]:
    """Optuna's distribution of each field over the points: a range of numbers, or names."""
    from optuna import distributions as kinds

    found = {}
    for field in {field: None for point in points for field in point}:
        values = [point[field] for point in points if field in point]
        if all(type(value) is int for value in values):
            found[field] = kinds.IntDistribution(min(values), max(values))
        elif all(type(value) in (int, float) for value in values):
            found[field] = kinds.FloatDistribution(float(min(values)), float(max(values)))
        else:
            found[field] = kinds.CategoricalDistribution(
                sorted({parameter(value) for value in values}, key=str)
            )
    return found


def parameter(value: Any) -> Any:
    """The value as a database takes it: tuples and lists as text."""
    return str(tuple(value)) if isinstance(value, tuple | list) else value
