"""Hyper-parameter search by optuna: seeded, pruned, and resumable from an SQLite file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from redline.errors import InputError, MissingError, RunError, UnknownNameError
from redline.train.fit import fit
from redline.train.metrics import metrics
from redline.train.recipe import Recipe

SPACE = ("lr=1e-4:3e-2", "weight_decay=1e-4:1e-1", "batch_size=32,64,128")
_PRUNERS: dict[str, Callable[[Any], Any]] = {
    "median": lambda pruners: pruners.MedianPruner(),
    "hyperband": lambda pruners: pruners.HyperbandPruner(),
    "none": lambda pruners: pruners.NopPruner(),
}


@dataclass(frozen=True)
class Found:
    """The best recipe, its value, one row a trial (number, state, value, choices), and whether
    Ctrl-C ended the search.
    """

    recipe: Recipe
    value: float
    rows: Sequence[Mapping[str, Any]]
    interrupted: bool = False


class _Reporter:
    """Tells optuna the monitor after every epoch, and ends a trial that it gives up."""

    def __init__(self, trial: Any, monitor: str) -> None:
        self.trial, self.monitor = trial, monitor

    def start(self, out: Path, recipe: Mapping[str, Any]) -> None:
        pass

    def log(self, record: Mapping[str, Any]) -> None:
        import optuna

        if record["kind"] == "epoch":
            self.trial.report(record["metrics"][self.monitor], record["epoch"])
            if self.trial.should_prune():
                raise optuna.TrialPruned

    def close(self) -> None:
        pass


def parse_space(texts: Sequence[str], recipe: Recipe) -> dict[str, Callable[[Any], Any]]:
    """What varies: "lr=1e-4:1e-1" (a logarithmic range) or "batch_size=16,64" (a list).

    Raises:
        UnknownNameError: there is no such choice.
        InputError: a range that cannot be read.
    """
    found: dict[str, Callable[[Any], Any]] = {}
    for text in texts:
        name, _, span = text.partition("=")
        if not hasattr(recipe, name):
            raise UnknownNameError("choice of a recipe", name, recipe.plain())
        like = type(getattr(recipe, name))
        try:
            if ":" in span and like in (int, float):
                low, high = (like(part) for part in span.split(":"))
                if not 0 < low < high:
                    raise ValueError
                pick = "suggest_int" if like is int else "suggest_float"
                found[name] = lambda trial, n=name, p=pick, lo=low, hi=high: getattr(trial, p)(  # type: ignore[misc]
                    n, lo, hi, log=True
                )
            elif like in (int, float, str):
                listed = [like(part) for part in span.split(",")]
                found[name] = lambda trial, n=name, items=listed: trial.suggest_categorical(
                    n, items
                )  # type: ignore[misc]
            else:
                raise ValueError
        except ValueError:
            raise InputError(
                f"--space {text!r} cannot be read", hint="lr=1e-4:1e-1, or optimizer=sgd,adamw"
            ) from None
    return found


def _monitor(recipe: Recipe, data: Any) -> tuple[str, bool]:
    """What trials are compared by, and whether more of it is better."""
    measure = metrics(recipe.metrics, getattr(data, "kind", "classes"))
    name = recipe.monitor or (measure[0].name if measure else "loss")
    return name, next((m.higher for m in measure if m.name == name), False)


def search_recipe(
    model: Any, data: Any, recipe: Recipe | None = None, *, trials: int,
    space: Sequence[str] = (), out: str | Path = "runs/trials", pruner: str = "median",
) -> Found:  # fmt: skip
    """Search the choices of a recipe; the study lies in out/study.db and goes on when called again.

    Args:
        model: the name of a network, or a function that makes a new one for each trial.
        data: as for fit().
        trials: how many in all, those of an earlier call counted.
        space: see parse_space(); SPACE by default.
        pruner: median, hyperband or none.

    Raises:
        InputError: the model is not made anew, or the space cannot be read.
        MissingError: optuna is not installed.
        RunError: no trial came to its end.

    Example:
        >>> search_recipe("mlp", load_data("digits"), Recipe(epochs=5), trials=10).recipe.lr
    """
    try:
        import optuna
        from optuna import pruners
    except ImportError:
        raise MissingError("optuna is not installed", hint="pip install optuna") from None
    recipe, out = recipe or Recipe(), Path(out)
    if pruner not in _PRUNERS:
        raise UnknownNameError("pruner", pruner, _PRUNERS)
    if isinstance(model, torch.nn.Module):
        raise InputError("trials need a new model each", hint="give its name or a function")
    suggest = parse_space(space or SPACE, recipe)
    monitor, higher = _monitor(recipe, data)
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="redline", storage=f"sqlite:///{out / 'study.db'}", load_if_exists=True,
        direction="maximize" if higher else "minimize",
        sampler=optuna.samplers.TPESampler(seed=recipe.seed),
        pruner=_PRUNERS[pruner](pruners),
    )  # fmt: skip

    def objective(trial: Any) -> float:
        chosen = recipe.changed(**{name: pick(trial) for name, pick in suggest.items()})
        made = model if isinstance(model, str) else model()
        folder = out / f"trial-{trial.number:04}"
        try:
            done = fit(made, data, chosen, out=folder, trackers=[_Reporter(trial, monitor)])
        except RunError as error:  # diverged: a row of the table, never the end of the search
            trial.set_user_attr("reason", str(error))
            raise optuna.TrialPruned from None
        if done.interrupted:  # not a result: a later call makes up for it
            trial.set_user_attr("interrupted", True)
            study.stop()
            raise optuna.TrialPruned
        return done.metrics[monitor]

    before = study.get_trials(deepcopy=False)
    missing = trials - sum(not _cut(trial) for trial in before)
    if missing > 0:
        study.optimize(objective, n_trials=missing)
    return _found(study, recipe, any(map(_cut, study.trials[len(before) :])), out)


def _cut(trial: Any) -> bool:
    """By Ctrl-C, or with its process."""
    return "interrupted" in trial.user_attrs or not trial.state.is_finished()


def _found(study: Any, recipe: Recipe, stopped: bool, out: Path) -> Found:
    rows = [
        {"number": t.number, "state": t.state.name.lower(), "value": t.value, **t.params}
        for t in study.trials
    ]
    if not any(row["state"] == "complete" for row in rows):
        hint = "go on with the same folder" if stopped else "lower lr in the space"
        raise RunError("no trial came to its end", where=str(out), hint=hint)
    best = study.best_trial
    value = math.nan if best.value is None else best.value
    return Found(recipe.changed(**best.params), value, rows, stopped)
