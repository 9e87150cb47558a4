"""Training as one of several processes: who this process is, who keeps an eye on it, what it does with the others."""

from affectgpt_jax.distributed.job import JobError, barrier, log_to, part_of_batch, start_jax
from affectgpt_jax.distributed.keeper import supervise
from affectgpt_jax.distributed.places import Given, Machine, Place, find_place, this_machine
from affectgpt_jax.distributed.register import Limits

__all__ = [
    "Given",
    "JobError",
    "Limits",
    "Machine",
    "Place",
    "barrier",
    "find_place",
    "log_to",
    "part_of_batch",
    "start_jax",
    "supervise",
    "this_machine",
]
