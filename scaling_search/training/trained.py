"""The network of a run that has ended, with its weights."""

from __future__ import annotations

from torch import nn

import effnet
from scaling_search import UserError
from scaling_search.data.dataset import Dataset
from scaling_search.training import checkpoint
from scaling_search.training.evaluation import reestimate_norms
from scaling_search.training.preparation import prepare
from scaling_search.training.train import flushed_denormals
from scaling_search.training.trial import Trial, inside


def trained_model(trial: Trial, data: Dataset) -> nn.Module:
    """Return the network of a run that is done, in eval mode on the CPU, as it was evaluated last:
    its weights averaged where the recipe does, its batch norms estimated anew.

    Raises UserError where its checkpoint is gone or damaged."""
    path = inside(trial.folder, f"e{trial.epochs}.ckpt")
    try:
        state = checkpoint.load(path)
    except checkpoint.DamagedError as error:
        raise UserError(f"checkpoint {error}; delete it, and the run begins anew") from error
    if state is None:
        raise UserError(f"checkpoint {path}: gone since the run ended; train again")
    ready = prepare(trial, data)
    try:
        with flushed_denormals():
            ready.step.load(state)
            with ready.step.averaged():
                reestimate_norms(ready)
                weights = {}
                for name, value in ready.step.model.state_dict().items():
                    weights[name] = value.detach().cpu().clone()
    finally:
        ready.batches.close()
    model = effnet.build(trial.arch)
    model.load_state_dict(weights)
    return model.eval()
