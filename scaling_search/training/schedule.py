"""The learning rate over the steps of a run: warm-up, a constant phase, and where it falls."""

from __future__ import annotations

from scaling_search.training.recipe import Recipe


def warmup_steps(recipe: Recipe, per_epoch: int) -> int:
    """Steps of warm-up, for epochs of `per_epoch` steps.

    On little data a warm-up of `recipe.warmup_steps` takes half of the first epoch; a bound by the
    run's length would forbid continuing the run."""
    if recipe.warmup_epochs:
        return round(recipe.warmup_epochs * per_epoch)
    return min(recipe.warmup_steps, per_epoch // 2)


def decay_start(recipe: Recipe, total: int) -> int:
    """The first step whose learning rate depends on the run's length of `total` steps; `total`
    where none does."""
    if recipe.schedule == "exponential":
        return total
    return total - max(1, round(recipe.decay * total))


def learning_rate(recipe: Recipe, step: int, total: int, per_epoch: int) -> float:
    """The learning rate at `step` (from 0) of `total`, for epochs of `per_epoch` steps.

    The exponential schedule is the paper's (section 5): 0.97 for every 2.4 epochs, in whole
    stairs, as EfficientNet's published code has it."""
    warmup = warmup_steps(recipe, per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.schedule == "exponential":
        return recipe.lr * 0.97 ** int(step / (2.4 * per_epoch))
    start = decay_start(recipe, total)
    if step < start:
        return recipe.lr
    return recipe.lr * (total - step) / (total - start + 1)
