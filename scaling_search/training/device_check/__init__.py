"""Whether training works on a device here: questions, each put by doing what a study does.

Needs torch and numpy alone, so that any machine can be asked: `python -m
scaling_search.training.device_check`. Everything that only a real device can say is asked here:
CUDA's rules, its numbers, its memory.
"""

from scaling_search.training.device_check.before_study import Verdict, verdict_before_study
from scaling_search.training.device_check.questions import check
from scaling_search.training.device_check.subject import Answer, Subject, line

__all__ = ["Answer", "Subject", "Verdict", "check", "line", "verdict_before_study"]
