"""Whatever a config says, it ends in one line or in a step: thousands of mutations of the shipped configs."""

import functools
import json
import math
import random
import zlib

import jax
import pytest
from test_structure import CONFIGS, load_config, small_teacher, traced_step

from simclr_jax import encoder, sharding
from simclr_jax.config import checks, default, every_steps, fields, flatten, from_json, to_json
from simclr_jax.errors import SimclrError

EXAMPLES, DEVICES = 100_000, 8  # of the run that is imagined
QUICK = ("quickstart", "ablation", "mnist")  # configs whose step is traced in a second or two
NAMES = [value for value in vars(fields).values() if isinstance(value, tuple)]  # that fields may take
EXTREMES = (-1, 0, 1, 2, 3, 2**31 - 1, 2**31, 2**63, 10**30, -0.0, 1e-300, 1e-30, 1e300, math.nan, math.inf,
            -math.inf)  # fmt: skip
STRANGE = (None, "", "x", "../x", "a/b", "/abs", "..", "line\nbreak", "\0", "☃", "nan", "1", "(", True, False,
           b"bytes", (), ("a",), ("(",), ((),), (None,), [1], {}, {"steps": 1})  # fmt: skip


def right(rng, value):
    """Another value of the type of `value`; most of them make sense."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(
            [value + 1, max(value - 1, 0), 2 * value, value // 2, rng.randrange(10), 8, 64, 1000]
        )
    if isinstance(value, float):
        return rng.choice([2 * value, value / 2, rng.random(), 10 ** rng.uniform(-4, 4)])
    if isinstance(value, tuple) and all(isinstance(v, str) for v in value) and value:
        return rng.choice([value[1:], ("kernel",), ("/bias$", "norm"), (".*",)])
    if isinstance(value, tuple):
        numbers = [rng.choice([rng.random(), rng.randrange(1, 5)]) for _ in range(rng.randrange(6))]
        return rng.choice([tuple(numbers), tuple(sorted(numbers)), value[1:]])
    return rng.choice([name for names in NAMES for name in names])


def odd(rng, value):
    """A value at the edge of the type, or of another type."""
    if isinstance(value, tuple) and rng.random() < 0.5:
        return tuple(rng.choice(EXTREMES) for _ in range(rng.choice([1, 2, 3, 4, 10])))
    kind = (EXTREMES, STRANGE)[rng.random() < 0.4]
    changed = rng.choice(kind)
    exact = isinstance(changed, float) and math.isfinite(changed) and not isinstance(value, float)
    return int(changed) if exact else changed


def mutated(path, rng):
    """(a shipped config with one to three fields changed, what was changed)."""
    config = load_config(path).get_config()
    if config.data.source == "folder:":
        config.data.source = "folder:/images"
    if config.start.workdir or config.task != "pretrain":  # of another run: architecture and image size
        config.start.workdir, config.data.image_size, config.data.channels = "", 224, 3
    flat, changes = flatten(default()), {}
    for field in rng.sample(sorted(flat), rng.choice([1, 1, 2, 3])):
        *parents, name = field.split(".")
        node = functools.reduce(lambda node, parent: node[parent], parents, config)
        value = rng.choice([right, odd])(rng, node[name] if node[name] is not None else "")
        with node.unlocked(), node.ignore_type():
            node[name] = changes[field] = value
    return config, changes


def outcome(config):
    """ "a step", or the one line that a run of `config` ends with before its images are read."""
    try:
        checks.validate(config)
        if config.model.dtype == "float64":  # refused by the run, where JAX has no float64
            return "float64"
        mesh = sharding.make_mesh(config.mesh.devices)
        checks.validate_run(config, EXAMPLES, mesh.size)
        state, after, _ = traced_step(config, EXAMPLES, mesh.size)
    except SimclrError as error:
        return str(error)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, after)]
    assert shapes[0] == shapes[1]
    for node in (config.log, config.checkpoint, config.eval):
        assert every_steps(node.every, EXAMPLES, config.train.batch_size) >= 0
    text = to_json(config, {})
    assert flatten(from_json(text)[0]) == flatten(config)
    assert "NaN" not in text
    json.loads(text)
    return "a step"


def check(path, seed, monkeypatch):
    """That mutation number `seed` of a config ends well."""
    rng = random.Random(zlib.crc32(f"{path.stem} {seed}".encode()))
    config, changes = mutated(path, rng)
    monkeypatch.setattr(encoder, "load", lambda workdir, step: small_teacher())
    try:
        said = outcome(config)
    except Exception as error:
        raise AssertionError(f"{path.stem}, mutation {seed}: {changes}") from error
    assert said.strip() == said != "", changes
    assert "\n" not in said, (said, changes)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", QUICK)
def test_a_mutated_config_ends_in_one_line_or_a_step(name, seed, monkeypatch):
    check(next(path for path in CONFIGS if path.stem == name), seed, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_two_thousand_mutations(part, monkeypatch):
    for seed in range(100 * part, 100 * (part + 1)):
        check(CONFIGS[seed % len(CONFIGS)], 1000 + seed, monkeypatch)
