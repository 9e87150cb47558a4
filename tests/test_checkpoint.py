"""How checkpoints lie on disk."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from affectgpt_jax.checkpoint import Checkpoints


def test_arrays_are_written_as_they_are(tmp_path: Path) -> None:
    """Ones, which compression would make next to nothing of, take their bytes, and Orbax alone reads them."""
    array = jnp.ones((1024, 256))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"params": {"array": array}}, {})
    checkpoints.wait()
    checkpoints.close()
    folder = tmp_path / "1" / "params"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) >= array.nbytes
    with ocp.StandardCheckpointer() as reader:
        np.testing.assert_array_equal(reader.restore(folder)["array"], array)
