"""What a machine and a run need before anything expensive starts: each thing checked, each fault with its remedy."""

from affectgpt_jax.doctor import machine, room, run
from affectgpt_jax.doctor.findings import Check, Finding, Question, Status, examine, left_behind
from affectgpt_jax.doctor.folders import weights

CHECKS: dict[str, Check] = {
    "environment": machine.environment,
    "versions": machine.versions,
    "devices": machine.devices,
    "all-reduce": machine.all_reduce,
    "config": run.config,
    "tokenizer": run.tokenizer,
    "weights": weights,
    "data": run.data,
    "start": run.start,
    "wheels": run.wheels,
    "mesh": room.mesh,
    "memory": room.memory,
    "disk": room.disk,
    "clock": room.clock,
    "limits": machine.limits,
}
"""In the order in which they run; none depends on what another found."""

__all__ = ["CHECKS", "Check", "Finding", "Question", "Status", "examine", "left_behind"]
