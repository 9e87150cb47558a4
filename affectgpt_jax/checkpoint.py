"""Run checkpoints: the training state and its position, by Orbax, in the background, restored onto any topology."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from affectgpt_jax.errors import UserError
from affectgpt_jax.weights.table import nest, paths


class Restored(NamedTuple):
    """What a checkpoint holds."""

    step: int
    items: dict[str, Any]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run folder. A half-written one is never seen."""

    def __init__(self, folder: Path, *, keep: int | None = None, keep_every: int = 0) -> None:
        """Open the folder.

        Args:
          folder: where checkpoints lie, one folder a step.
          keep: latest ones kept; the folder is created if need be. None only reads, and touches nothing that a
            running training is about to write.
          keep_every: those at multiples of it are kept for good; 0 for none.

        Raises:
          UserError: the folder cannot be written or read.
        """
        self.folder = folder.resolve()
        try:
            if keep is None:
                with _without_warnings():
                    options = ocp.CheckpointManagerOptions(read_only=True, create=False)
                    self._manager = ocp.CheckpointManager(self.folder, options=options)
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    keep_period=keep_every or None,
                    cleanup_tmp_directories=True,
                    # Two folders of a run may be saving the same step: their barriers are not each other's.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        barrier_sync_key_prefix=self.folder.name
                    ),
                )
                self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise UserError(f"{folder}: cannot be opened ({error}); name another run folder") from error

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def holds(self, item: str, step: int | None = None) -> bool:
        """Whether a checkpoint has an item; of the newest one when `step` is None."""
        step = self.latest if step is None else step
        return step is not None and (self.folder / str(step) / item).is_dir()

    def save(self, step: int, items: dict[str, Any], facts: dict[str, Any]) -> None:
        """Start saving; an error of the save before surfaces here.

        Args:
          step: optimizer steps taken; saving the newest one again does nothing.
          items: named trees of arrays, each of which can be restored without the others.
          facts: what JSON can hold.
        """
        if self._manager.latest_step() == step:
            return
        trees = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with self._failing():
            self._manager.save(step, args=ocp.args.Composite(**trees, facts=ocp.args.JsonSave(facts)))

    def restore(self, abstract: dict[str, Any], step: int | None = None) -> Restored:
        """Read a checkpoint onto freshly built targets.

        Args:
          abstract: the wanted items as shapes with shardings; whatever mesh wrote the checkpoint does not matter.
          step: which one; the newest when None.

        Raises:
          UserError: there is none, or it is of another model.
        """
        step = self._find(abstract, step)
        try:
            trees = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
            found = self._manager.restore(step, args=ocp.args.Composite(**trees, facts=ocp.args.JsonRestore()))
        except (ValueError, KeyError, TypeError) as error:
            raise _unfit(self.folder / str(step), str(error).splitlines()[0]) from error
        return Restored(step, {name: found[name] for name in abstract}, found.facts)

    def restore_apart(
        self, abstract: dict[str, Any], apart: Callable[[str], bool], step: int | None = None
    ) -> tuple[int, Iterator[dict[str, Any]]]:
        """Read a checkpoint in parts, so that one can make something smaller of each before the next is read.

        Args:
          abstract: as `restore`; nested dictionaries.
          apart: by a leaf's path: whether it is read alone. All others of an item come together.
          step: which one; the newest when None.

        Returns:
          The checkpoint's step, and its parts, leaves by their paths.

        Raises:
          UserError: as `restore`.
        """
        step = self._find(abstract, step)
        return step, self._parts(self.folder / str(step), abstract, apart)

    def _parts(self, place: Path, abstract: dict[str, Any], apart: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
        for name, tree in abstract.items():
            flat = paths(tree)
            alone = [path for path in flat if apart(path)]
            for part in ({path: x for path, x in flat.items() if path not in alone}, *({p: flat[p]} for p in alone)):
                if not part:
                    continue
                wanted = nest(part)
                how = ocp.checkpoint_utils.construct_restore_args(wanted)
                with ocp.PyTreeCheckpointer() as reader:
                    args = ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
                    try:
                        found = reader.restore(place / name, args=args)
                    except (ValueError, KeyError, TypeError) as error:
                        raise _unfit(place, str(error).splitlines()[0]) from error
                yield paths(found)
                del found  # before the next part is read

    def _find(self, abstract: dict[str, Any], step: int | None) -> int:
        """The step that is meant; raises as `restore`."""
        step = self.latest if step is None else step
        if step is None or step not in self.steps:
            steps = ", ".join(map(str, self.steps)) or "none"
            raise UserError(f"{self.folder}: no checkpoint{'' if step is None else f' of step {step}'}; found: {steps}")
        for name, tree in abstract.items():
            if _nested_dictionaries(tree):
                self._check(self.folder / str(step) / name, tree)
        return step

    def _check(self, item: Path, abstract: dict[str, Any]) -> None:
        """Compare the names and shapes of a stored tree with those wanted, before any of it is read."""
        with _without_warnings(), ocp.StandardCheckpointer() as reader:
            found = dict(reader.metadata(item).item_metadata)
        stored = {path: tuple(leaf.shape) for path, leaf in paths(found).items()}
        wanted = {path: tuple(leaf.shape) for path, leaf in paths(abstract).items()}
        both = [path for path in wanted if path in stored]
        wrong = [f"{path}: {stored[path]}, expected {wanted[path]}" for path in both if stored[path] != wanted[path]]
        wrong += [f"{path} is missing" for path in wanted if path not in stored]
        wrong += [f"{path} is not wanted" for path in stored if path not in wanted]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise _unfit(item, "; ".join(wrong[:3]) + more)

    def check(self) -> None:
        """Do nothing unless a save in the background has failed.

        Raises:
          UserError: it has; the checkpoints before it are whole.
        """
        with self._failing():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Wait until everything is on disk.

        Raises:
          UserError: the last save has failed.
        """
        with self._failing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the writers of all formats raise
            # They raise it for every array, and asyncio would tell of each that nobody asked for.
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{self.folder}: a checkpoint could not be written ({reason}). Those before it are whole (the newest: "
                f"step {self.latest}); make room or mend the folder, and start the run again: it goes on from there"
            ) from error

    def close(self) -> None:
        """Wait and release the folder."""
        self._manager.close()


def _unfit(place: Path, why: str) -> UserError:
    return UserError(f"{place} does not fit this model; did model, weights or train.trainable change? ({why})")


def _nested_dictionaries(tree: Any) -> bool:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return all(isinstance(key, jax.tree_util.DictKey) for path, _ in leaves for key in path)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Orbax warns of every folder that is opened to be read only, which is what was asked for."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)


def targets(tree: Any) -> Any:
    """Arrays as shapes with their shardings, the targets of a restore."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class _PlainArrays(ocp.type_handlers.ArrayHandler):
    """Arrays as they are in memory: zstd makes trained numbers 7 % smaller, writing and reading a quarter slower."""

    async def serialize(self, values: Sequence[jax.Array], infos: Sequence[Any], args: Any = None) -> Any:
        for info in infos:
            info.use_compression = False
        return await super().serialize(values, infos, args)


# By default Orbax lets each replica write a slice of every array, and compiles a program per shape for that in the
# middle of training. What is trained here is small: the first replica writes it.
with _without_warnings():
    ocp.type_handlers.register_type_handler(jax.Array, _PlainArrays(use_replica_parallel=False), override=True)
