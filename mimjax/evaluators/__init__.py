"""Measurements beside training: held-out masked error, health, k-NN and linear probes, pictures.

An evaluator trains nothing through the trainer and depends on no method: it reads a task's
predictions, its prepared batch and its encoder's `Features`. `base.py` describes the contract, and
how a user's own evaluator is added.
"""

from __future__ import annotations

from mimjax.evaluators.base import Evaluator, make_evaluators
from mimjax.evaluators.table import render

__all__ = ["Evaluator", "make_evaluators", "render"]
