"""The learning-rate schedule of a run: describes it before the start, and shortens a warm-up if needed."""

from ml_collections import ConfigDict

from simclr_jax import optim
from simclr_jax.config import count_steps, duration, total_steps

SHARE = 10  # a warm-up takes a tenth of the run, in the paper's recipes that or less


def lengths(config: ConfigDict, examples: int) -> tuple[int, int]:
    """(steps of the warm-up, steps of the run) on `examples` training images."""
    warmup = count_steps(config.optimizer.warmup, examples, config.train.batch_size)
    return warmup, total_steps(config, examples)


def settle(
    config: ConfigDict, examples: int, stored: ConfigDict | None = None
) -> tuple[ConfigDict, list[str]]:
    """(config with a warm-up shorter than the run, lines about the change).

    With a warm-up as long as the run the learning rate would never reach its peak; such a warm-up becomes a
    tenth of the run. The result depends only on the arguments, so that the same command, given again, agrees
    with the config.json of the first one.

    Args:
      examples: how many training images there are.
      stored: the config.json of a run that resumes, None for a new run. A run that resumes keeps its
        schedule, even if an older version let it warm up all the time.
    """
    if stored is not None and stored.optimizer.warmup == config.optimizer.warmup:
        return config, []
    warmup, total = lengths(config, examples)
    if warmup < total:
        long = warmup * SHARE > total and stored is None
        share = f"{warmup:,} of {_steps(total)}, {warmup / total:.0%}"
        return config, [f"note: the warm-up takes {share}; a tenth is usual"] if long else []
    config, tenth = config.copy_and_resolve_references(), total // SHARE
    if tenth:  # the finest unit wins: what was asked for stays on record
        config.optimizer.warmup.steps = tenth
    else:
        config.optimizer.warmup.update(duration())
    line = (
        f"warm-up: the {_steps(warmup)} of config.optimizer.warmup do not fit a run of {_steps(total)}; "
        f"it takes a tenth of the run, {_steps(tenth)}"
    )
    return config, [line]


def describe(config: ConfigDict, examples: int) -> str:
    """What the learning rate does, in one line."""
    warmup, total = lengths(config, examples)
    optimizer = config.optimizer
    peak = optim.scaled_rate(optimizer.learning_rate, optimizer.scaling, config.train.batch_size)
    end = f"falls by a cosine to 0 at step {total:,}"
    if not warmup:
        return f"learning rate: starts at {peak:.4g} and {end}"
    if warmup < total:
        return f"learning rate: rises to {peak:.4g} over {_steps(warmup)}, then {end}"
    reached = peak * total / warmup
    return (
        f"learning rate: rises all the time, to {reached:.4g} at step {total:,} (to {peak:.4g} it would take "
        f"{_steps(warmup)})"
    )


def _steps(count: int) -> str:
    return f"{count:,} step" if count == 1 else f"{count:,} steps"
