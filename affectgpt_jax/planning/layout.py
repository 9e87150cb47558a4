"""A job's arrays as shapes with shardings, over devices that need not exist."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.examples import collate_rows
from affectgpt_jax.inference import answering, extraction
from affectgpt_jax.inference.engine import Prompts
from affectgpt_jax.inference.runs import feature_shapes
from affectgpt_jax.ops.axes import spec
from affectgpt_jax.planning.job import Job
from affectgpt_jax.sharding import (
    AnyMesh,
    abstract_mesh,
    batch_sharding,
    batch_shards,
    check_mesh,
    make_mesh,
    mesh_sizes,
)
from affectgpt_jax.training.data import batch_shape
from affectgpt_jax.training.setup import Design, design


def lay_out(job: Job, devices: Any = None) -> Design:
    """The job's parameters and training state over a mesh.

    Args:
      job: what is planned.
      devices: of its topology; None: nothing will be compiled for them.

    Raises:
      UserError: sizes of the mesh that do not fit the topology, the model or the batch.
    """
    sizes = mesh_sizes(job.config.mesh, job.topology.devices)
    rows = job.config.train.rows if job.kind == "train" else answer_rows(job, sizes)
    train = job.config.train.model_copy(update={"rows": rows})
    check_mesh(job.config.model_copy(update={"train": train}), sizes)
    config = job.config
    mesh = abstract_mesh(config.mesh, job.topology.devices) if devices is None else make_mesh(config.mesh, devices)
    return design(config, mesh)


def abstract_batch(job: Job, mesh: AnyMesh) -> Batch:
    """A training step's batch."""
    config = job.config
    one = collate_rows([], batch_shape(config, 1, feature_shapes(config), np.float16))
    shape = (config.train.accumulate, config.train.rows)
    place = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype, sharding=place), one)


def abstract_prompts(job: Job, mesh: AnyMesh) -> Prompts:
    """A batch of questions."""
    rows, length, shapes = answer_rows(job, dict(mesh.shape)), prompt_bucket(job), feature_shapes(job.config)

    def make(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=NamedSharding(mesh, spec("batch")))

    return Prompts(
        make(np.int32, length),
        make(np.int32, length),
        make(np.bool_, length),
        {name: make(np.float32, 1, *shape) for name, shape in shapes.items()},
        {name: make(np.bool_, 1) for name in shapes},
    )


def answer_rows(job: Job, sizes: dict[str, int]) -> int:
    """Rows of a batch of answers: `evaluate.batch`, rounded up to the parts that the mesh splits it into."""
    shards = batch_shards(sizes)
    return -(-job.config.evaluate.batch // shards) * shards


def prompt_bucket(job: Job) -> int:
    """Tokens that the job's prompts are padded to."""
    return (extraction if job.kind == "extract" else answering).bucket(job.load.prompt)
