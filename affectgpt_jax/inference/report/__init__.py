"""A run's report: one HTML page that needs nothing else, from what training and evaluation left in the run folder."""

from pathlib import Path

from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.report.examples import choose_examples
from affectgpt_jax.inference.report.page import page
from affectgpt_jax.inference.report.record import read_record


def write_report(folder: str | Path, *, corpus: str | Path | None = None, output: str | Path | None = None) -> Path:
    """Write a run's report.

    Whatever is not there yet (scores, answers, the clips) is named in the page, which shows the rest.

    Args:
      folder: run folder.
      corpus: folder with the clips that were answered, in the MER2025 layout; by default the one that scores.json or
        the run's config names.
      output: the page; `folder`/report.html by default.

    Returns:
      Where the page is.

    Raises:
      UserError: not a run folder, no such corpus, or the page cannot be written.
    """
    record = read_record(Path(folder))
    if corpus is not None and not (Path(corpus) / "video").is_dir():
        raise UserError(f"{corpus} is no corpus in the MER2025 layout: it has no folder video")
    text = page(record, choose_examples(record, None if corpus is None else Path(corpus)))
    path = Path(output) if output is not None else Path(folder) / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: the report cannot be written ({error.strerror})") from error
    return path
