"""Weights that are published as a torch file only, rewritten as safetensors: without torch, running nothing of them."""

from functools import partial
from pathlib import Path

from affectgpt_jax.fetch.sums import Report
from affectgpt_jax.replacing import replacing

TORCH = "pytorch_model.bin"
SAFETENSORS = "model.safetensors"


def to_safetensors(folder: Path, report: Report) -> None:
    """Write model.safetensors with the tensors of pytorch_model.bin, names and types as they are; remove the latter.

    Raises:
      UserError: it is damaged, or asks for more than tensors; it stays then.
    """
    import numpy as np

    from affectgpt_jax.weights.files import Item, write_file
    from affectgpt_jax.weights.pth import PthTensor, read_state_dict

    tensors = read_state_dict(folder / TORCH)
    done, total = 0, sum(tensor.nbytes for tensor in tensors.values())

    def read(tensor: PthTensor) -> np.ndarray:
        nonlocal done
        done += tensor.nbytes
        report(done, total)
        return np.asarray(tensor)

    items = [Item(name, tensor.shape, tensor.dtype, partial(read, tensor)) for name, tensor in tensors.items()]
    with replacing(folder / SAFETENSORS) as draft:
        write_file(draft, items)
    (folder / TORCH).unlink()
