"""The baseline without a network: logistic regression on pixels, all kept labels in one place."""

from __future__ import annotations

import time

import numpy as np

from jointdiff.config import RunConfig
from jointdiff.data import DatasetInfo
from jointdiff.data.server_set import everybody
from jointdiff.errors import ConfigError
from simulations.named_run import Result


def check_pixels(info: DatasetInfo) -> None:
    """Check that a data set has the two classes that this baseline is made for.

    Raises:
        ConfigError: It has not.
    """
    if info.num_outputs != 2 or info.task != "multi-class":
        raise ConfigError(f"The method 'pixels' is for two classes; {info.name} has {info.num_outputs} ({info.task}).")


def run_pixels(run: RunConfig) -> Result:
    """Fit and evaluate it on the data of a run.

    Raises:
        ConfigError: The data set has no two classes.
        DataError: As for any run.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score

    parts = everybody(run)
    check_pixels(parts[0].info)
    began = time.perf_counter()
    x = np.concatenate([p.train.images[p.train.labelled] for p in parts]).reshape(-1, parts[0].train.images[0].size)
    y = np.concatenate([p.train.labels[p.train.labelled] for p in parts])
    test = np.concatenate([p.test.images for p in parts]).reshape(-1, x.shape[1])
    truth = np.concatenate([p.test.labels for p in parts])
    model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=5000).fit(x / 127.5 - 1, y)
    probs = model.predict_proba(test / 127.5 - 1)
    decided = probs[:, 1] > 0.5
    return Result(
        float(roc_auc_score(truth, probs[:, 1])), float(balanced_accuracy_score(truth, decided)),
        float(accuracy_score(truth, decided)), float(log_loss(truth, probs)), 0, time.perf_counter() - began,
    )  # fmt: skip
