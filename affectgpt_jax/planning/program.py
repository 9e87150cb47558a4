"""A job's programs compiled for devices that are not there, and the compiler's own account of them.

Run as a program of its own (`python -m affectgpt_jax.planning.program`), so that its memory is the compiler's and this
machine's accelerators stay out of it: a job comes in on stdin, its account goes out on stdout, both as JSON.
"""

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from affectgpt_jax.config import RunConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.planning.job import Job, Load
from affectgpt_jax.planning.topology import open_topology, parse_topology

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}


class Collective(NamedTuple):
    """One array that goes through a collective operation."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    """Of the result, on one device."""
    where: str
    """What the operation belongs to in the source."""


class Account(NamedTuple):
    """What the compiler says of one program; bytes are of one device, 0 where it could not be compiled.

    Attributes:
      program: its name.
      fits: whether it could be compiled within the device's memory.
      arguments: bytes that it is given.
      temporaries: bytes that it works with.
      peak: bytes at most at a time, or as many as would have been needed.
      collectives: kind -> how many there are in the program and bytes of their results; a layer's are counted once,
        for the layers are a loop. None where the program cannot be read.
      lower_seconds: tracing and lowering.
      compile_seconds: compiling.
      message: why it does not fit.
    """

    program: str
    fits: bool
    arguments: int
    temporaries: int
    peak: int
    collectives: dict[str, tuple[int, int]] | None
    lower_seconds: float
    compile_seconds: float
    message: str = ""


class Compiled(NamedTuple):
    """All programs of a job, and what compiling them took of this machine: bytes at most, seconds in all."""

    programs: tuple[Account, ...]
    host_memory: int
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether all do."""
        return all(program.fits for program in self.programs)

    @property
    def largest(self) -> Account:
        """The program that needs most."""
        return max(self.programs, key=lambda program: (not program.fits, program.peak))


def read_collectives(text: str) -> list[Collective]:
    """Every array that a compiled program exchanges between devices."""
    found = []
    pattern = rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\("
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if match := re.search(pattern, line):
            name = re.search(r'op_name="([^"]*)"', line)
            for dtype, sizes in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match[1]):
                shape = tuple(int(size) for size in sizes.split(",") if size)
                found.append(Collective(match[2], dtype, shape, name[1] if name else ""))
    return found


def compile_job(job: Job) -> Compiled:
    """Compile a job's programs in a process of their own.

    Args:
      job: what is planned; its topology must have a compiler.

    Raises:
      UserError: sizes that do not fit, no compiler, or one that failed.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",  # no accelerator of this machine
        "TPU_SKIP_MDS_QUERY": "1",  # no server is asked what machine this is
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nobody holds a TPU, so that several may compile at a time
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a compile time that is one
    }
    if job.topology.chip is None:
        count = f"--xla_force_host_platform_device_count={job.topology.devices}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {count}"
    words = {
        "kind": job.kind,
        "config": job.config.model_dump(mode="json"),
        "topology": job.topology.name,
        "load": job.load._asdict(),
    }
    started = time.monotonic()
    command = [sys.executable, "-m", "affectgpt_jax.planning.program"]
    ran = subprocess.run(command, input=json.dumps(words), capture_output=True, text=True, env=environment, check=False)
    if ran.returncode:
        why = "\n".join(ran.stderr.strip().splitlines()[-15:])
        raise UserError(f"compiling for {job.topology.name} ended with status {ran.returncode}:\n{why}")
    found = json.loads(ran.stdout.splitlines()[-1])
    if "error" in found:
        raise UserError(found["error"])
    programs = tuple(Account(**program) for program in found["programs"])
    return Compiled(programs, found["host_memory"], time.monotonic() - started)


def _lowered(job: Job) -> dict[str, Callable[[], Any]]:
    """What lowers each program of a job."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding

    from affectgpt_jax.inference.engine import Settings, abstract_state, programs
    from affectgpt_jax.ops.axes import spec
    from affectgpt_jax.ops.sampling import GREEDY
    from affectgpt_jax.planning.layout import abstract_batch, abstract_prompts, answer_rows, lay_out, prompt_bucket
    from affectgpt_jax.sharding import replicated
    from affectgpt_jax.weights.fused import fuse

    plan = lay_out(job, open_topology(job.topology))
    mesh: Any = plan.mesh

    def under(lower: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            with jax.set_mesh(mesh):
                return lower()

        return call

    if job.kind == "train":
        frozen = fuse(plan.frozen) if job.config.model.decoder.fused else plan.frozen
        return {"step": under(lambda: plan.step.lower(plan.state, frozen, abstract_batch(job, mesh)))}
    config = job.config
    settings = Settings(
        plan.model, answer_rows(job, dict(mesh.shape)), prompt_bucket(job), config.evaluate.max_new, (), GREEDY, 0
    )
    work = programs(settings, mesh)
    everywhere, by_rows = replicated(mesh), NamedSharding(mesh, spec("batch"))

    def number(dtype: Any, place: NamedSharding, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    prompts = abstract_prompts(job, mesh)
    count = prompts.tokens.shape[0]
    rows, numbers = number(np.int32, everywhere, count), number(np.uint32, by_rows, count)
    limit = number(np.int32, everywhere)
    state = abstract_state(settings, mesh)
    return {
        "read prompts": under(lambda: work.prefill.lower(plan.params, state, prompts, rows, numbers)),
        "write answers": under(lambda: work.decode.lower(plan.params, state, limit, limit)),
    }


def _account(name: str, lower: Callable[[], Any], on_tpu: bool) -> Account:
    import jax

    started = time.perf_counter()
    lowered = lower()
    lower_seconds, started = time.perf_counter() - started, time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        seconds = time.perf_counter() - started
        told = str(error)
        if "RESOURCE_EXHAUSTED" not in told:
            raise
        message = next((line for line in told.splitlines() if "HBM" in line), told.splitlines()[0])
        used = re.search(r"([\d.]+[KMGT]?)\)? exceeds available HBM \(([\d.]+[KMGT]?)\)", message)
        needs = _number(used[1]) if used else 0
        message = message.removeprefix("RESOURCE_EXHAUSTED: ").strip()
        return Account(name, False, 0, 0, needs, None, lower_seconds, seconds, message)
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    given, works, given_back = (
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
    )
    # A TPU's compiler knows what is alive at a time; a CPU's does not say, and takes all working memory at once.
    peak = memory.peak_memory_in_bytes if on_tpu else given + works + given_back
    collectives: dict[str, tuple[int, int]] | None
    try:
        collectives = {}
        for each in read_collectives(compiled.as_text()):
            size = _SIZES.get(each.dtype, 4)
            for length in each.shape:
                size *= length
            count, total = collectives.get(each.kind, (0, 0))
            collectives[each.kind] = (count + 1, total + size)
    except jax.errors.JaxRuntimeError:  # of some topologies XLA cannot print its own program
        collectives = None
    return Account(
        name,
        True,
        given,
        works,
        peak,
        collectives,
        lower_seconds,
        seconds,
    )


def _number(text: str) -> int:
    """Bytes of 15.75G."""
    scale = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1])
    return int(float(text[:-1]) * 2**scale) if scale else int(float(text))


def main() -> None:
    """Account for the job on stdin."""
    words = json.loads(sys.stdin.read())
    out, sys.stdout = sys.stdout, sys.stderr
    topology, load = parse_topology(words["topology"]), Load(**words["load"])
    job = Job(words["kind"], RunConfig.model_validate(words["config"]), topology, load, 0.0)
    try:
        programs = [_account(name, lower, topology.chip is not None)._asdict() for name, lower in _lowered(job).items()]
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=out)
        return
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"programs": programs, "host_memory": most}), file=out)


if __name__ == "__main__":
    main()
