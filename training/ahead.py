# ruff: noqa: F401
"""What the processes of a run import: importing this imports it once for all of them."""

from training.loop import without_scipy_signal

with without_scipy_signal():
    import lightning.pytorch

import ray.data
import ray.train.lightning
import ray.train.torch
import ray.tune
import transformers.modeling_utils

import classifier.network
import training.batches
import training.epoch_report
import training.evaluation
import training.experiment
import training.feed
import training.finish
import training.module
import training.stream
import training.trainer
import training.worker
