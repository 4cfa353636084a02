"""The same jobs through Ray Tune with reused actors, on this machine or a cluster. The only folder
that imports ray.

One Tune experiment lasts as long as the executor, in a thread: its searcher hands over what the
driver gives and its results come back through a queue (exchange.py), so that the driver stays in
the main thread, Optuna the one record, and actors (actor.py) warm.

How an actor may end, and what that means for its run:

- killed, out of memory, its node lost: Tune reports an error; the run is lost, and goes on from its
  checkpoint in another actor;
- hung (no training step for long): its own watchdog ends the process, and the rest is the same;
- ended before it took up the run: the run is not to blame; several in a row are the cluster's
  fault, and stop the study;
- its run crashed, or was not captured on CUDA: the outcome counts, and the actor, whose process may
  be broken too, refuses the next run, which goes to a new actor;
- without any node that could train, for some minutes: the study stops. A cluster may be growing
  one, so a short time without is no fault.
"""

import os

# Tune would otherwise catch Ctrl-C, change into a folder per trial, log each result thrice and
# phone home. Ray reads these when it is imported.
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "86400"  # the store is the record, not Tune's copy of it
os.environ["TUNE_FORCE_TRIAL_CLEANUP_S"] = "20"
os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Tune's thread must not start a Ray anew behind the driver's back
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# A Ray started here listens on 127.0.0.1 alone: without this it resolves a loopback address to the
# machine's own.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from scaling_search.driver.executors.ray.cluster import (
    describe_cluster,
    disconnect,
    resolve_on_cluster,
)
from scaling_search.driver.executors.ray.executor import RayExecutor

__all__ = ["RayExecutor", "describe_cluster", "disconnect", "resolve_on_cluster"]
