"""One run: the recipe, the trial, its steps, evaluations, checkpoints and watchdog.

Any machine with torch and numpy alone can train: nothing else is imported.
"""
