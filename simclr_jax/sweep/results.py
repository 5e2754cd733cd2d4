"""Reports the results of a sweep: a table, trials.csv and two figures."""

import csv
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from simclr_jax.figures import BLUE, INK, ORANGE, attempt, new, save, text
from simclr_jax.sweep import study as studies
from simclr_jax.sweep.trials import Sweep
from simclr_jax.text import show_table


def report(sweep: Sweep, study: optuna.Study) -> None:
    """Prints the table and writes trials.csv, history.png and importance.png into the sweep's folder."""
    trials = ranked(study)
    where = "the test split" if sweep.test else "a tenth of the training images, kept from training"
    show(trials, f"{sweep.metric}, top-1 on {where}")
    sweep.out.mkdir(parents=True, exist_ok=True)
    write_csv(sweep.out / "trials.csv", trials)
    written = [sweep.out / "trials.csv"]
    if attempt(print, sweep.out / "history.png", draw_history, trials, sweep.metric):
        written.append(sweep.out / "history.png")
    importance, why = importances(study)
    if importance:
        if attempt(print, sweep.out / "importance.png", draw_importance, importance):
            written.append(sweep.out / "importance.png")
    else:
        print(f"no importance.png: {why}")
    print("\n" + "\n".join(map(str, written)))


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The trials, each settings once: finished ones by value, then pruned ones, then failed ones."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING, TrialState.RUNNING)
    first = {}
    for trial in studies.counted(study):
        first.setdefault(trial.user_attrs.get("name", trial.number), trial)
    return sorted(first.values(), key=lambda t: (states.index(t.state), -(t.value or 0), t.number))


def show(trials: list[FrozenTrial], title: str) -> None:
    """The table: rank, value, steps, state and settings."""
    rows = []
    for rank, trial in enumerate(trials, 1):
        done, notes = trial.state == TrialState.COMPLETE, trial.user_attrs
        value = "" if trial.value is None else f"{100 * trial.value:.1f} %"
        state = {"COMPLETE": "", "FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
        settings = notes.get("name", "").replace(",", "  ")
        rows.append([rank if done else "", value, notes.get("steps", ""), settings, state])
    columns = ["rank", "top-1", "steps", "", "state"]
    show_table(title, columns, [[str(cell) for cell in row] for row in rows])
    for trial in trials:
        if "error" in trial.user_attrs:
            print(f"  {trial.user_attrs['name']}: {trial.user_attrs['error']}")


def write_csv(path: Any, trials: list[FrozenTrial]) -> None:
    """One row per trial: its result, every field, every score with its standard error, what went wrong."""
    fields = list({field: None for trial in trials for field in trial.user_attrs.get("settings", {})})
    metrics = list({metric: None for trial in trials for metric in trial.user_attrs.get("scores", {})})
    head = ["number", "state", "value", "steps", "seconds"]
    scored = [f"{kind}/{metric}" for metric in metrics for kind in ("scores", "standard_errors")]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *fields, *scored, "error", "workdir"])
        for trial in trials:
            notes = trial.user_attrs
            numbers = [notes.get(kind, {}).get(m) for m in metrics for kind in ("scores", "standard_errors")]
            writer.writerow(
                [
                    trial.number,
                    trial.state.name.lower(),
                    trial.value,
                    notes.get("steps"),
                    notes.get("seconds"),
                ]
                + [notes.get("settings", {}).get(field) for field in fields]
                + [*numbers, notes.get("error"), f"trials/{notes['name']}" if "name" in notes else None]
            )


def importances(study: optuna.Study) -> tuple[dict[str, float], str]:
    """How much of the values' variance each parameter explains (fANOVA), or nothing and why."""
    done = [trial for trial in studies.counted(study) if trial.state == TrialState.COMPLETE]
    common = set.intersection(*(set(trial.params) for trial in done)) if done else set()
    if len(done) < 2:
        return {}, "it takes two finished trials"
    if len(common) < 2:
        return {}, "it takes two parameters that all trials have"
    try:
        fanova = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=fanova), ""
    except (ValueError, RuntimeError) as error:  # all values are the same, say
        return {}, str(error).strip()


# ---- figures ------------------------------------------------------------------------------------


def draw_history(path: Any, trials: list[FrozenTrial], metric: str) -> bool:
    """The value of every trial in the order of the study, and the best so far; False with nothing to draw."""
    told = [(t.state, t.number, 100 * t.value) for t in trials if t.value is not None]
    done = sorted((number, value) for state, number, value in told if state == TrialState.COMPLETE)
    pruned = [(number, value) for state, number, value in told if state == TrialState.PRUNED and value]
    if not done:
        return False
    figure = new(figsize=(6.5, 3.4))
    axes = figure.subplots()
    numbers, values = np.array(done).T
    axes.step(numbers, np.maximum.accumulate(values), where="post", color=ORANGE, label="best so far")
    axes.plot(numbers, values, "o", color=BLUE, markersize=4, label="finished")
    if pruned:
        axes.plot(*np.array(pruned).T, "o", color=BLUE, markerfacecolor="none", markersize=4,
                  label="pruned, accuracy then")  # fmt: skip
    axes.set_title(f"{text(metric)}, top-1 (%): {values.max():.1f} at best", color=INK, fontsize=10)
    axes.set_xlabel("trial", color=INK)
    axes.locator_params("x", integer=True)
    axes.grid(color="#dddddd")
    axes.legend(frameon=False)
    save(figure, path)
    return True


def draw_importance(path: Any, importance: dict[str, float]) -> None:
    """Draws one bar per parameter."""
    figure = new(figsize=(6.5, 0.8 + 0.35 * len(importance)))
    axes = figure.subplots()
    names, shares = list(importance), [100 * share for share in importance.values()]
    axes.barh(range(len(names)), shares[::-1], color=BLUE, height=0.6)
    axes.set_yticks(range(len(names)), list(map(text, names[::-1])))
    axes.set_title("Share of the variance between trials (%), fANOVA", color=INK, fontsize=10)
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    save(figure, path)
