"""What `redline train` does: from the words on a command line to a training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redline.errors import InputError, UnknownNameError
from redline.train.fit import fit
from redline.train.networks import network
from redline.train.recipe import Recipe
from redline.train.result import Result
from redline.train.sources import load_data
from redline.train.trials import search_recipe
from redline.train.weights import load_weights


def parse_choices(texts: Sequence[str]) -> dict[str, Any]:
    """The choices of a recipe from texts such as "epochs=20" and "augment=flip,crop:4".

    Raises:
        UnknownNameError: there is no such choice.
        InputError: a value that is not of its type.

    Example:
        >>> parse_choices(["epochs=20", "lr=1e-3"])
        {'epochs': 20, 'lr': 0.001}
    """
    defaults = {each.name: getattr(Recipe(), each.name) for each in dataclasses.fields(Recipe)}
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r} cannot be read", hint="write --set epochs=20")
        if name not in defaults:
            raise UnknownNameError("choice of a recipe", name, defaults)
        like = defaults[name]
        try:
            if isinstance(like, bool):
                found[name] = {"true": True, "1": True, "false": False, "0": False}[value.lower()]
            elif isinstance(like, tuple):
                found[name] = tuple(part for part in value.split(",") if part)
            else:
                found[name] = type(like)(value)
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"--set {text!r}: expected {type(like).__name__} such as {like!r}"
            ) from None
    return found


def run_training(
    model: Any, data: str, choices: Sequence[str], *, out: Path | None, weights: Path | None,
    size: int, block: int, resume: bool, tensorboard: bool, trials: int, space: Sequence[str],
) -> Result:  # fmt: skip
    """Load the data, make the network, search if asked to, and train.

    Raises:
        InputError: as fit(), load_data(), load_weights() and search_recipe().
        KeyboardInterrupt: Ctrl-C ended the search; one in the training returns.
    """
    recipe = Recipe().changed(**parse_choices(choices))
    if isinstance(model, Path):
        raise InputError(f"{model} is no network", hint="write pkg.module:factory, or its name")
    loaded = load_data(data, split=recipe.split, seed=recipe.seed, size=size, block=block)
    if trials:
        if not isinstance(model, str):
            raise InputError("trials need a network by name: each one starts anew")
        folder = out or Path("runs") / f"{loaded.name}-trials"
        found = search_recipe(model, loaded, recipe, trials=trials, space=space, out=folder)
        if found.interrupted:
            raise KeyboardInterrupt(
                f"interrupted; best so far {found.value:.4f}; the same command goes on in {folder}"
            )
        recipe = found.recipe
        past = len(list(folder.glob("final*")))
        out = folder / (f"final-{past + 1}" if past and not resume else "final")
    if weights is not None:
        import torch

        torch.manual_seed(recipe.seed)
        model = network(model, loaded) if isinstance(model, str) else model
        try:
            model.load_state_dict(load_weights(weights))
        except RuntimeError as error:
            raise InputError(f"the weights do not fit: {error}", where=str(weights)) from None
    follow = ("tensorboard",) if tensorboard else ()
    return fit(model, loaded, recipe, out=out, resume=resume, trackers=follow)
