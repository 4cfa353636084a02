"""One run: the recipe, the trial, its steps, checkpoints and watchdog. Needs torch and numpy
alone."""
