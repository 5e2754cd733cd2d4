"""How long the run is, and what its learning rate does."""

from collections.abc import Iterator

from simclr_jax import recipe
from simclr_jax.config import every_steps
from simclr_jax.doctor.findings import Finding, note, ok, warning
from simclr_jax.doctor.plan import Plan


def check(plan: Plan) -> Iterator[Finding]:
    """Steps, epochs, evaluations, checkpoints; peak rate and warm-up."""
    config, examples, batch = plan.config, plan.train.size, plan.config.train.batch_size
    epochs = plan.steps * batch / examples
    shown = f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"
    left = f", {plan.steps - plan.first:,} of them left" if plan.first else ""
    yield ok(f"{plan.steps:,} steps{left}: {shown} epochs of {examples // batch:,} steps")
    yield ok(recipe.describe(config, examples))
    scaling, rate = config.optimizer.scaling, config.optimizer.learning_rate
    if scaling != "none":
        how = f"× {batch:,} / 256" if scaling == "linear" else f"× √{batch:,}"
        yield note(f"the peak is config.optimizer.learning_rate={rate:g} {how} (scaling={scaling})")
    yield from _periods(plan)


def _periods(plan: Plan) -> Iterator[Finding]:
    config, examples, batch = plan.config, plan.train.size, plan.config.train.batch_size
    every = every_steps(config.eval.every, examples, batch)
    count = (plan.steps - plan.first) // every if every else 0
    final = "scores at the end" if config.eval.final else "no scores at the end (config.eval.final=False)"
    yield ok(f"{count:,} evaluations on the way; {final}")
    save = every_steps(config.checkpoint.every, examples, batch)
    if save and save < plan.steps:
        yield ok(f"a checkpoint every {save:,} steps")
    elif plan.steps > 1000:
        yield warning(
            f"no checkpoint before the end: an interruption costs all {plan.steps:,} steps",
            "--config.checkpoint.every.epochs=1",
        )
