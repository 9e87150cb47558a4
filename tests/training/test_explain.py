"""`affectgpt explain`: the tables and the picture say what the batch holds."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affectgpt_jax.cli import main
from affectgpt_jax.config import load_config
from affectgpt_jax.data.clips import ClipFiles, read_modality
from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.prompts import PLACEHOLDERS
from affectgpt_jax.data.shard_schema import parse_stream
from affectgpt_jax.inference.runs import open_shards
from affectgpt_jax.training.data import make_asker
from affectgpt_jax.training.explain import as_text, explain
from affectgpt_jax.weights.initial import resolve
from tests.inference.clip_run import make_clip_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip_run(tmp_path_factory.mktemp("run")).parent


def test_the_tables_are_the_batch(folder: Path) -> None:
    """Every token with its id, the soft tokens in the places of their placeholders, the targets of the pipeline."""
    config, tokenizer = resolve(load_config(folder / "run" / "config.yaml"))
    corpus = open_shards(config, "train")
    text, name = corpus.text(0), corpus.names[0]
    files = ClipFiles(
        video=folder / "corpus" / "video" / f"{name}.mp4",
        faces=folder / "corpus" / "openface_face" / name / f"{name}.npy",
    )
    features = {key: corpus.features(f"{key}@8", [0])[0][0] for key in ("face", "audio")}
    found = explain(config, tokenizer, text, files, features)
    said = as_text(found, config, tokenizer)
    for name, seen in found.streams.items():
        np.testing.assert_array_equal(seen.media, read_modality(files, parse_stream(f"{name}@8")))
        np.testing.assert_array_equal(seen.features, features[name])
    ask = make_asker(config, tokenizer)
    for number, kind in enumerate(config.data.label_types):
        example = ask(text, number)
        assert not isinstance(example, Rejected)
        table = said.split(f"asked {kind}: ")[1].split("\n\n")[0].splitlines()
        assert table[0].startswith(f"{len(example.tokens)} tokens, {(example.soft_index > 0).sum()} of them soft")
        rows = [line.split() for line in table[2:]]
        assert [int(row[1]) for row in rows] == example.tokens.tolist()
        predicted = {
            int(match[1]): int(match[2])
            for line in table[2:]
            if (match := re.match(r" +(\d+) .{40,} (\d+)  ['\"].*['\"]$", line))
        }
        assert predicted == dict(zip(example.target_positions.tolist(), example.target_ids.tolist(), strict=True))
        for at in np.flatnonzero(example.soft_index):
            modality = table[2 + at].split()[3]
            assert PLACEHOLDERS[modality] in table[2 + at]
    assert text.subtitle in said
    assert re.search(r"face/.*\.npy, crops 0, \d", said)


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With shards, with clips alone, with a reference run's masks; and by a name that is none."""
    config, _ = resolve(load_config(folder / "run" / "config.yaml"))
    name = open_shards(config, "test").names[0]
    out = tmp_path / "out"
    words = ["explain", str(folder / "run"), "--sample", name, "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"sample      {name} (test)")
    assert (out / f"{name}.txt").read_text() in said
    with Image.open(out / f"{name}.png") as picture:
        assert len(set(picture.convert("L").resize((64, 64)).getdata())) > 20
    assert main([*words, "data.shards="]) == 0
    without = capsys.readouterr().out
    assert "features [" in said
    assert "features [" not in without
    assert without.split("asked ovlabel")[1].splitlines()[:20] == said.split("asked ovlabel")[1].splitlines()[:20]
    assert main([*words, "prepare.corpus="]) == 0
    assert "the clip itself is not at hand" in capsys.readouterr().out
    assert main([*words, "compat=reference"]) == 0
    assert "that nothing attends to" in capsys.readouterr().out
    assert main([*words[:3], "nobody"]) == 2
    assert "no sample is called 'nobody' in data.shards=" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "nonsense"])
    assert "unrecognized arguments: nonsense" in capsys.readouterr().err
