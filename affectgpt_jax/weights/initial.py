"""A run's parameters before training: the base model from its folder, the rest fresh from the seed."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from affectgpt_jax.config.networks import RUNTIME, DecoderConfig, ModelConfig
from affectgpt_jax.config.run import RunConfig
from affectgpt_jax.data.tokenizer import Tokenizer, open_tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.ops.quantisation import quantise
from affectgpt_jax.weights.files import open_part, part_config
from affectgpt_jax.weights.networks import DECODER, SCALE
from affectgpt_jax.weights.table import Reader, Shape, nest, paths, readers
from affectgpt_jax.weights.towers import audio_config, vision_config
from affectgpt_jax.weights.trainable import is_trained

VOCABULARY_MULTIPLE = 64
"""A fresh vocabulary is rounded up to a multiple of this, for even sharding."""


def resolve(config: RunConfig) -> tuple[RunConfig, Tokenizer]:
    """Replace sizes by those of the folders the config names, and open the tokenizer.

    Raises:
      UserError: no tokenizer, or a vocabulary too small for it; a base to quantise, but none named.
    """
    folder = config.weights.tokenizer or config.weights.language
    if not folder:
        raise UserError("weights.tokenizer: name a tokenizer folder (or weights.language, a model folder that has one)")
    tokenizer = open_tokenizer(folder)
    model, decoder = config.model, config.model.decoder
    if config.weights.language:
        kept = {key: getattr(decoder, key) for key in RUNTIME}
        decoder = DecoderConfig.from_hf(part_config(config.weights.language, "language"), **kept)
    else:
        if decoder.base == "int8":
            raise UserError(
                "model.decoder.base=int8 quantises a base as it is read, and none is named; set weights.language, or "
                "model.decoder.base=float"
            )
        vocabulary = -(-tokenizer.size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        decoder = decoder.model_copy(update={"vocab": vocabulary})
    sizes: dict[str, Any] = {"decoder": decoder}
    if config.weights.vision:
        sizes["vision_width"] = vision_config(config.weights.vision).projection
    if config.weights.audio:
        sizes["audio_width"] = audio_config(config.weights.audio).width
    return config.model_copy(update={"model": model.model_copy(update=sizes)}), tokenizer


def parameter_shapes(model: AffectGPT) -> Any:
    """All parameters of a model as shapes."""
    return _shapes(model.config)


@functools.cache
def _shapes(config: ModelConfig) -> Any:
    model = AffectGPT(config)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), method="initialise"))["params"]


def initial_parameters(
    config: RunConfig, model: AffectGPT, shardings: Any, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All parameters of a resolved config, made where they will lie.

    Args:
      config: the run; `weights.language` names the base model, `train.seed` decides what is fresh.
      model: its network.
      shardings: a sharding for each parameter.
      given: parameters by path that are neither fresh nor the base's.
    """
    given, places = given or {}, paths(shardings)
    own = {path for path in places if not in_base(config, path)}
    fresh = fresh_parameters(config, model, shardings, own - given.keys())
    placed = {path: put(leaf, places[path]) for path, leaf in given.items()}
    return nest(paths(fresh) | paths(read_base(config, model, shardings)) | placed)


def put(leaf: Any, place: jax.sharding.NamedSharding) -> jax.Array:
    """A parameter where it shall lie; of a host's array each device gets its part alone."""
    if isinstance(leaf, jax.Array):
        return jax.device_put(leaf, place)
    return jax.make_array_from_callback(leaf.shape, place, lambda index: np.asarray(leaf[index]))


def fresh_parameters(config: RunConfig, model: AffectGPT, shardings: Any, wanted: Collection[str]) -> dict[str, Any]:
    """The parameters of some paths, made from the seed."""
    if not wanted:
        return {}
    places = {path: x for path, x in paths(shardings).items() if path in wanted}

    def init() -> Any:
        params = model.init(jax.random.key(config.train.seed), method="initialise")["params"]
        return nest({path: leaf for path, leaf in paths(params).items() if path in places})

    # Run once: a CPU's compiler need not optimise it.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=nest(places), compiler_options=quick)()


def held_shapes(config: RunConfig, model: AffectGPT) -> dict[str, Any]:
    """All parameters as shapes in the types that a run holds them in.

    What comes from the base is of the decoder's type, or int8; what is trained (the masters) and what is made anew is
    float32.
    """

    def held(path: str, leaf: Any) -> Any:
        same = leaf.dtype == jnp.int8 or path.endswith(SCALE) or not in_base(config, path)
        trained = is_trained(config.model, path, config.train.trainable)
        return leaf if same or trained else jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(config.model.decoder.dtype))

    return nest({path: held(path, leaf) for path, leaf in paths(parameter_shapes(model)).items()})


def base_shapes(config: RunConfig, model: AffectGPT) -> dict[str, Any]:
    """The parameters that stand in the base's folder, as shapes in the type they are read in; empty without a base.

    That is the type they are held in, but float32 for what becomes int8.
    """

    def read(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32) if leaf.dtype == jnp.int8 else leaf

    flat = paths(held_shapes(config, model))
    stored = {path: x for path, x in flat.items() if in_base(config, path) and not path.endswith(SCALE)}
    return nest({path: read(x) for path, x in stored.items()})


def read_base(
    config: RunConfig, model: AffectGPT, shardings: Any, without: Collection[str] = frozenset()
) -> dict[str, Any]:
    """The parameters of the base's folder, each device reading its own part; empty without a base.

    Args:
      config: the run, resolved.
      model: its network.
      shardings: a sharding for each parameter.
      without: paths that are left out.
    """
    folder = config.weights.language
    if not folder:
        return {}
    return read_decoder(base_shapes(config, model), open_part(folder, "language")[1], folder, shardings, without)


def read_decoder(
    shapes: Any, tensors: Mapping[str, Any], origin: str, shardings: Any, without: Collection[str] = frozenset()
) -> dict[str, Any]:
    """A decoder's parameters, each device reading its own part.

    Args:
      shapes: of the tree to make, in the types in which its leaves are read.
      tensors: by their Hugging Face names.
      origin: where they are from, for messages.
      shardings: a sharding for each parameter; a kernel that has one for scales beside it is held as int8.
      without: paths that are left out.

    Raises:
      UserError: names that are missing, unused or of another shape.
    """
    places = paths(shardings)
    flat: dict[str, Any] = {}
    for path, leaf, read in readers(DECODER, shapes, tensors, origin):
        if path in without:
            continue
        if (scale := f"{path}_scale") in places:
            flat[path], flat[scale] = _read_int8(read, leaf.shape, places[path], places[scale])
        else:
            flat[path] = jax.make_array_from_callback(leaf.shape, places[path], read)
    return nest(flat)


def round_kernels(flat: Mapping[str, Any], shardings: Any) -> dict[str, Any]:
    """Parameters by path, those kernels as int8 with their scales beside them that have a sharding for scales."""
    places = paths(shardings)
    found: dict[str, Any] = {}
    for path, leaf in flat.items():
        if (scale := f"{path}_scale") in places and leaf.dtype != jnp.int8:
            found[path], found[scale] = jax.jit(quantise, out_shardings=(places[path], places[scale]))(leaf)
        else:
            found[path] = leaf
    return found


def _read_int8(read: Reader, shape: Shape, kernel_place: Any, scale_place: Any) -> tuple[jax.Array, jax.Array]:
    """A stacked kernel [L, in, out] as int8 with its scales [L, out]; one layer of it at a time is a float."""
    places = (kernel_place, scale_place)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=places)
    def put(held: tuple[jax.Array, jax.Array], layer: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Largest entries of a channel are found over all devices that share it.
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=number, axis=0)
        kernel, scale = map(update, held, quantise(layer))
        return kernel, scale

    @functools.partial(jax.jit, out_shardings=places)
    def empty() -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(shape, jnp.int8), jnp.zeros((shape[0], shape[2]), jnp.float32)

    def part(number: int, index: Any) -> np.ndarray:
        return read((slice(number, number + 1), *index[1:]))

    held = empty()
    for number in range(shape[0]):
        read_layer = functools.partial(part, number)
        held = put(held, jax.make_array_from_callback((1, *shape[1:]), kernel_place, read_layer), np.int32(number))
    return held


def in_base(config: RunConfig, path: str) -> bool:
    """Whether a parameter stands in the base's folder."""
    return bool(config.weights.language) and path.startswith("decoder/") and "/lora_" not in path
