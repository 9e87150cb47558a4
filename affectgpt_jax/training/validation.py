"""Validation during training: loss and scores of answers on a held-out split, apart from the run's own data."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from affectgpt_jax.config import RunConfig
from affectgpt_jax.config.run import DropoutRates
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.shards import mix
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.inference.answering import Answer, Answerer
from affectgpt_jax.inference.evaluate import PLAIN, make_queries
from affectgpt_jax.inference.runs import Run, open_shards
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.ops.losses import TargetLoss
from affectgpt_jax.sharding import put_batch, replicated, under
from affectgpt_jax.training.data import make_batches, make_data
from affectgpt_jax.unibench.scoring import score_labels
from affectgpt_jax.unibench.table_cache import load_table
from affectgpt_jax.weights.trainable import Tree, join

SCORES = ("hit_rate", "f_score")


class Validator:
    """Measures a run's parameters on `validation.split`; the same samples in the same rows every time."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        model: AffectGPT,
        mesh: Mesh,
        part: tuple[int, int],
        say: Callable[[str], None],
    ) -> None:
        """Open the split.

        Args:
          config: the run, resolved.
          tokenizer: the run's.
          model: its network.
          mesh: where its parameters lie.
          part: which part of a batch's rows this process makes, and how many parts there are.
          say: told what is left out.

        Raises:
          UserError: no such split in the shards, or no usable sample in it.
        """
        settings = config.validation
        corpus = mix([open_shards(config, settings.split, verify=False)], [1.0])
        quiet = {"hide": DropoutRates(), "mixture": (), "samples": 0, "workers": 0}
        quiet |= {"weighting": "token", "split": settings.split}
        self._config = config.model_copy(
            update={
                "data": config.data.model_copy(update=quiet),
                "train": config.train.model_copy(update={"accumulate": 1}),
            }
        )
        self._tokenizer, self._mesh, self._part = tokenizer, mesh, part
        kinds = config.data.label_types
        self._data = {
            kind: make_data(self._only(i), tokenizer, corpus, say if i == 0 else _silent, most=settings.samples)
            for i, kind in enumerate(kinds)
        }
        sums = jax.jit(partial(_sums, model), out_shardings=replicated(mesh))
        self._sums = under(mesh, sums)
        self._answered = min(settings.answers, len(corpus))
        self._corpus = corpus.corpora[0]
        self._run = Run(Path(config.train.output), config, tokenizer, model, {}, 0)
        self._table = load_table() if self._answered else None

    def __call__(self, params: Tree, frozen: Tree) -> dict[str, float]:
        """Loss in nats per target token, over all and of each question type; scores of answers if any are asked for."""
        totals = {}
        for kind, data in self._data.items():
            steps = data.plan.epoch_steps(0)
            config = self._config.model_copy(update={"train": self._config.train.model_copy(update={"steps": steps})})
            batches = make_batches(config, self._tokenizer, data, 0, self._part)
            sums = [self._sums(params, frozen, put_batch(self._mesh, batch)) for batch in batches]
            totals[kind] = np.sum([[float(part.loss), float(part.weight)] for part in sums], axis=0)
        found = {f"validation_loss_{kind}": float(loss / weight) for kind, (loss, weight) in totals.items()}
        loss, weight = np.sum(list(totals.values()), axis=0)
        return {"validation_loss": float(loss / weight), **found, **self._scores(params, frozen)}

    def _only(self, kind: int) -> RunConfig:
        """The config with one question type asked of every sample."""
        weights = tuple(float(i == kind) for i in range(len(self._config.data.label_types)))
        return self._config.model_copy(update={"data": self._config.data.model_copy(update={"label_weights": weights})})

    def _scores(self, params: Tree, frozen: Tree) -> dict[str, float]:
        if self._table is None:
            return {}
        settings = self._run.config.evaluate
        run = self._run._replace(params=join(params, frozen))
        answerer = Answerer(run, batch=settings.batch, max_new=settings.max_new)
        clips = range(self._answered)
        answers = answerer(make_queries(run, self._corpus, PLAIN, settings.question, clips=clips))
        predicted = [answer.labels if isinstance(answer, Answer) else [] for answer in answers]
        truth = [text.labels for text in self._corpus.texts(clips)]
        found = score_labels(truth, predicted, self._table, resamples=0).scores
        return {f"validation_{name}": found[name].value for name in SCORES}


def _sums(model: AffectGPT, params: Tree, frozen: Tree, batch: Batch) -> TargetLoss:
    whole: Any = {"params": join(params, frozen)}
    sums: Any = model.apply(whole, jax.tree.map(lambda x: jnp.squeeze(x, 0), batch))
    return sums


def _silent(line: str) -> None:
    """Said once already."""
