"""Which predictions on unlabelled images are trusted, and how far: one file per policy, all pure.

A policy is a function `(probs, state, index, task) -> Judgement`. Its state is the site's own: it is kept on the site's
disk from round to round and never leaves.
"""

from __future__ import annotations

from jointdiff.pseudo_labels.agreement import agreed
from jointdiff.pseudo_labels.alignment import aligned, shares, uniform
from jointdiff.pseudo_labels.fixed import fixed, trusted
from jointdiff.pseudo_labels.flexmatch import flexmatch, flexmatch_start
from jointdiff.pseudo_labels.freematch import freematch, freematch_start
from jointdiff.pseudo_labels.judgement import Judgement, Policy, State, Task, confidence_of, nothing
from jointdiff.pseudo_labels.mixture import mixture
from jointdiff.pseudo_labels.softmatch import softmatch, softmatch_start

# The names in jointdiff/pseudo_label_keys.py, which knows no torch.
POLICIES = {
    "fixed": Policy(nothing, fixed),
    "freematch": Policy(freematch_start, freematch),
    "flexmatch": Policy(flexmatch_start, flexmatch),
    "softmatch": Policy(softmatch_start, softmatch),
    "mixture": Policy(nothing, fixed, revise=mixture),
}

__all__ = [
    "POLICIES",
    "Judgement",
    "Policy",
    "State",
    "Task",
    "agreed",
    "aligned",
    "confidence_of",
    "fixed",
    "flexmatch",
    "flexmatch_start",
    "freematch",
    "freematch_start",
    "mixture",
    "shares",
    "softmatch",
    "softmatch_start",
    "trusted",
    "uniform",
]
