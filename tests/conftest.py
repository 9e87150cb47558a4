"""Folders of reference material, and settings every test shares."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before jax is imported anywhere: the CPU, and compiled programs kept between runs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile hundreds of tiny programs and run each a few times: a third of the compiler's work is enough.
QUICK = (
    "backend_optimization_level=0",
    "cpu_use_fusion_emitters=false",
    "cpu_parallel_codegen_split_count=1",
    "cpu_multi_thread_eigen=false",
)
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in QUICK))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# transformers copies the code of a folder that it trusts into a package of this one folder, set before its import.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="affectgpt-tests-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)


def reference_folder(variable: str, default: str) -> Path:
    """A folder of reference material, from the environment or beside the repository; skips where there is none."""
    folder = Path(os.environ.get(variable, ROOT / default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no reference material: {folder} is not there (set {variable})", allow_module_level=True)
    return folder
