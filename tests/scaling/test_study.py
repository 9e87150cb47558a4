"""A study's file, its ladder, and the plan that is drawn up of it."""

import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from affectgpt_jax.config import build_config, load_config
from affectgpt_jax.config.networks import DecoderConfig, ModelConfig
from affectgpt_jax.data.prompts import MODES, needs, unfused_mode
from affectgpt_jax.errors import UserError
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.planning.estimate import estimate
from affectgpt_jax.planning.job import make_job
from affectgpt_jax.planning.topology import parse_topology
from affectgpt_jax.scaling.draw import make_plan
from affectgpt_jax.scaling.ladder import QWEN, VOCABULARY, decoder_parameters, decoder_sizes
from affectgpt_jax.scaling.plan import Plan, read_plan, write_plan
from affectgpt_jax.scaling.study import as_study, read_study
from affectgpt_jax.scaling.tables import plan_rows, plan_summary, status_lines
from affectgpt_jax.training.flops import Work, decoder_work
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.table import paths
from affectgpt_jax.weights.trainable import split
from tests.conftest import ROOT

GRID = {"size": ["0.1M", "0.5M"], "captions": [100, 200]}


def study(tmp_path: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "name": "tried",
        "base": "smoke",
        "synthetic": {},
        "parts": {"law": GRID},
        "output": str(tmp_path / "study"),
    }
    return as_study(values | changes, "study.yaml")


def draw(tmp_path: Path, **changes: Any) -> Plan:
    return make_plan(study(tmp_path, **changes), tmp_path / "study.yaml")


# The ladder


@pytest.mark.parametrize("name", ["0.1M", "0.2M", "0.5M", "1M", "2M", "20M", "100M", "1B"])
def test_a_rung_has_the_size_it_is_called_by(name: str) -> None:
    sizes = decoder_sizes(name)
    wanted = float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
    assert 0.75 < decoder_parameters(**sizes) / wanted < 1.25
    shapes = paths(parameter_shapes(AffectGPT(ModelConfig(decoder=decoder(sizes, VOCABULARY)))))
    found = sum(int(np.prod(leaf.shape)) for path, leaf in shapes.items() if path.startswith("decoder/"))
    assert found == decoder_parameters(**sizes)


def test_rungs_rise() -> None:
    names = ["20K", "50K", "0.1M", "0.3M", "1M", "3M", "10M", "30M", "100M", "300M", "1B", "3B", "10B"]
    counts = [decoder_parameters(**decoder_sizes(name)) for name in names]
    assert counts == sorted(counts)
    assert len(set(counts)) == len(counts)


@pytest.mark.parametrize("size", QWEN)
def test_qwen_sizes_are_those_of_the_shipped_configs(size: str) -> None:
    sizes = decoder_sizes(f"qwen2.5-{size}")
    billions = decoder_parameters(**sizes) / 1e9
    # Qwen2.5's model cards.
    assert round(billions, 2) == {"0.5b": 0.49, "1.5b": 1.54, "3b": 3.09, "7b": 7.62, "14b": 14.77, "32b": 32.76}[size]
    name = f"affectgpt_qwen2.5_{size}_face"
    if (ROOT / "configs" / f"{name}.yaml").is_file():
        shipped = load_config(name).model.decoder.model_dump()
        assert {key: shipped[key] for key in sizes} == sizes


@pytest.mark.parametrize("name", ["", "1", "0M", "1T", "qwen2.5-8b", "2K", "1000B"])
def test_what_is_no_size_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="size"):
        decoder_sizes(name)


def decoder(sizes: dict[str, Any], vocab: int) -> DecoderConfig:
    return DecoderConfig(**sizes, vocab=vocab, lora={"rank": 0})


# The file


def test_the_shipped_study_is_one() -> None:
    found = read_study("scaling/synthetic")
    sizes = {size for part in found.parts.values() for size in part.size}
    assert len(sizes) >= 5
    assert found.seeds >= 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parts": {}}, ["parts"]),
        ({"parts": {"law": {**GRID, "sizes": ["1M"]}}}, ["unknown key parts.law.sizes", "parts.law.size"]),
        ({"parts": {"law": {"size": ["1M"]}}}, ["parts.law", "captions"]),
        ({"parts": {"law": {"design": "isoflop", "size": ["1M"]}}}, ["flops", "isoflop"]),
        ({"parts": {"law": {"design": "ladder", "captions_per_parameter": 1.0}}}, ["ladder", "size"]),
        ({"parts": {"law": {"design": "isoflop", "size": ["1M"], "flops": 1e12, "captions": 5}}}, ["captions"]),
        ({"parts": {"law": {**GRID, "encoder": "large"}}}, ["large", "encoders"]),
        ({"parts": {"law": {**GRID, "prefusion": "mean"}}}, ["prefusion", "mean"]),
        ({"budget": {"chip_hours": 3}}, ["chip_hours", "flops_per_s"]),
        ({"budget": {"topology": "h200:1", "flops_per_s": 1e12}}, ["flops_per_s"]),
        ({"seed": 3}, ["unknown key seed", "seeds"]),
        ({"metrics": ["accuracy"]}, ["metrics"]),
    ],
)
def test_a_wrong_study_is_refused_by_key(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        study(tmp_path, **changes)
    assert "study.yaml" in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_single_value_is_a_list_of_one(tmp_path: Path) -> None:
    part = study(tmp_path, parts={"law": {"size": "1M", "captions": 100, "rank": 0}}).parts["law"]
    assert (part.size, part.captions, part.rank) == (("1M",), (100,), (0,))


# The plan


def test_a_grid_is_every_combination_once_seed_by_seed_the_cheapest_first(tmp_path: Path) -> None:
    plan = draw(
        tmp_path,
        parts={
            "law": {**GRID, "prefusion": "attention"},
            "kinds": {**GRID, "captions": 200, "prefusion": ["none", "attention"]},
        },
        seeds=2,
    )
    asked = {(run.setting.size, run.setting.captions, run.setting.prefusion, run.seed) for run in plan.runs}
    wanted = {(*each, seed) for each in product(GRID["size"], GRID["captions"], ["attention"]) for seed in (0, 1)}
    wanted |= {(size, 200, "none", seed) for size in GRID["size"] for seed in (0, 1)}
    assert asked == wanted
    assert len(plan.runs) == len(wanted)
    assert len({run.id for run in plan.runs}) == len(wanted)
    both = [run for run in plan.runs if run.parts == ("law", "kinds")]
    assert {(run.setting.captions, run.setting.prefusion) for run in both} == {(200, "attention")}
    order = [(run.seed, run.cost.flops) for run in plan.runs]
    assert order == sorted(order)


def test_a_part_may_have_more_seeds_than_the_others(tmp_path: Path) -> None:
    parts = {
        "law": {**GRID, "prefusion": "attention", "seeds": 3},
        "kinds": {"size": "0.1M", "captions": 100, "prefusion": ["none", "attention"]},
    }
    plan = draw(tmp_path, parts=parts)
    assert len(plan.runs) == 4 * 3 + 1
    assert [run.parts for run in plan.runs if run.setting.prefusion == "none"] == [("kinds",)]
    same = [run for run in plan.runs if (run.setting.size, run.cost.captions) == ("0.1M", 100)]
    same = [run for run in same if run.setting.prefusion == "attention"]
    assert {run.seed: run.parts for run in same} == {0: ("law", "kinds"), 1: ("law",), 2: ("law",)}


def test_costs_are_the_closed_forms(tmp_path: Path) -> None:
    plan = draw(tmp_path, tokens=150, targets=40, parts={"law": {**GRID, "epochs": [1, 3]}})
    for run in plan.runs:
        config = plan.config(run)
        assert config.data.samples == run.cost.captions == run.setting.captions
        assert run.cost.samples == run.setting.captions * run.setting.epochs
        form = decoder_work(
            config.model.decoder,
            *split(config.model, parameter_shapes(AffectGPT(config.model)), config.train.trainable),
        )
        one = form.flops(Work(1, 150, 40, 150 * 151 / 2))
        assert run.cost.flops == pytest.approx(run.cost.samples * one, rel=1e-9)
        assert run.cost.parameters == decoder_parameters(**decoder_sizes(str(run.setting.size)))
        assert 0 < run.cost.body < run.cost.parameters < run.cost.trained
        assert run.cost.hours is None  # nothing is known of this machine


def test_chip_hours_and_memory_are_those_of_affectgpt_plan(tmp_path: Path) -> None:
    budget = {"topology": "h200:2", "chip_hours": 1}
    plan = draw(tmp_path, budget=budget, set=["train.rows=32"])
    run = plan.runs[-1]
    given = {"tokens": plan.lengths.tokens, "targets": plan.lengths.targets}
    config = plan.config(run, ["weights.tokenizer="])
    found = estimate(make_job("train", config, parse_topology("h200:2"), given))
    assert run.cost.samples_per_s == pytest.approx(found.samples / found.seconds)
    assert run.cost.hours == pytest.approx(run.cost.samples / found.samples * found.seconds * 2 / 3600)
    assert run.cost.memory == found.memory.peak
    assert plan.problems == []


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    part = {"size": "qwen2.5-32b", "captions": 100}
    whole = {"synthetic": None, "parts": {"law": part}, "budget": {"topology": "rtx4090:1", "chip_hours": 1e-9}}
    told = draw(tmp_path, **whole).problems
    assert any("GiB" in line and "qwen2.5-32b" in line for line in told)
    assert any("chip-hours" in line for line in told)
    odd = draw(tmp_path, budget={"topology": "h200:3"}).problems
    assert len(odd) == 4
    assert all("rows" in line for line in odd)
    (line,) = draw(tmp_path, budget={"flops": 1e9}).problems
    assert "budget.flops" in line


def test_slices_of_compute_cost_what_they_say(tmp_path: Path) -> None:
    part = {"design": "isoflop", "size": ["0.1M", "0.2M", "0.5M"], "flops": [1e11, 4e11]}
    plan = draw(tmp_path, parts={"law": part})
    for size in part["size"]:
        costs = [run.cost.flops for run in plan.runs if run.setting.size == size]
        assert costs == pytest.approx([1e11, 4e11], rel=0.01)
    with pytest.raises(UserError, match=r"size 0\.\dM would be trained on \d captions"):
        draw(tmp_path, parts={"law": {**part, "flops": 1e9}})


def test_a_ladder_gives_each_size_its_captions(tmp_path: Path) -> None:
    part = {"design": "ladder", "size": ["0.1M", "1M"], "captions_per_parameter": 0.002}
    for run in draw(tmp_path, parts={"law": part}).runs:
        assert run.cost.captions == round(0.002 * run.cost.parameters)


def test_axes_become_settings(tmp_path: Path) -> None:
    plan = draw(
        tmp_path,
        parts={
            "law": {
                **GRID,
                "size": "0.1M",
                "captions": 100,
                "rank": [2, 8],
                "query_tokens": 3,
                "frames": 4,
                "encoder": "b",
            }
        },
        encoders={"b": ["model.vision_width=32", "data.shards=shards/{frames}/{encoder}"]},
        set=["data.row_targets={captions}"],
        learning_rate={"rate": 1e-3, "width": 96, "exponent": -1},
        synthetic=None,
    )
    for run in plan.runs:
        config = plan.config(run)
        lora = config.model.decoder.lora
        assert (lora.rank, lora.alpha) == (run.setting.rank, 2 * (run.setting.rank or 0))
        assert set(config.model.tokens.model_dump().values()) == {1, 3}
        assert config.prepare.streams == ("face@4", "audio@4")
        assert (config.data.shards, config.model.vision_width) == ("shards/4/b", 32)
        assert config.data.row_targets == 100
        assert config.train.optimizer.peak == pytest.approx(2e-3)  # width 48
        assert config.train.optimizer.end == pytest.approx(2e-4)
    with pytest.raises(UserError, match=r"'rank'.*no axis"):
        draw(tmp_path, set=["train.rows={rank}"])


@pytest.mark.parametrize("mode", MODES)
def test_without_prefusion_the_prompt_shows_the_same_but_the_mixture(mode: str) -> None:
    found = unfused_mode(mode)
    assert "multi" not in needs(found).soft
    assert (needs(found).streams, needs(found).text) == (needs(mode).streams, needs(mode).text)
    build_config(
        {"model": {"mode": found, "prefusion": "none"}, "prepare": {"streams": ["face@8", "frame@8", "audio@8"]}}, ""
    )


def test_a_runs_name_follows_from_its_settings(tmp_path: Path) -> None:
    one = {run.id for run in draw(tmp_path, seeds=2).runs}
    more = {run.id for run in draw(tmp_path, seeds=3, parts={"law": {**GRID, "captions": [100, 200, 400]}}).runs}
    assert one < more
    other = {run.id for run in draw(tmp_path, seeds=2, learning_rate={"rate": 1e-4}).runs}
    assert not one & other
    assert not one & {run.id for run in draw(tmp_path, seeds=2, synthetic={"seed": 1}).runs}


def test_a_plan_is_stored_whole(tmp_path: Path) -> None:
    plan = draw(tmp_path, seeds=2, budget={"flops_per_s": 1e10, "chip_hours": 5})
    path = write_plan(plan)
    assert read_plan(path.parent) == plan
    header, rows = plan_rows(plan)
    assert len(rows) == len(plan.runs)
    assert all(len(row) == len(header) for row in rows)
    assert plan_summary(plan)[1][-1][1] == str(len(plan.runs))
    path.write_text(json.dumps({"study": {}}))
    with pytest.raises(UserError, match=r"plan\.json"):
        read_plan(path.parent)
    with pytest.raises(UserError, match="scaling plan"):
        read_plan(tmp_path)


def test_a_thousand_runs_are_planned_and_told_quickly(tmp_path: Path) -> None:
    """Networks of one shape are laid out once: what is slow is done for each size, not for each run."""
    part = {"size": ["0.1M", "0.2M", "0.5M", "1M"], "captions": list(range(100, 2600, 50))}
    started = time.process_time()
    plan = draw(tmp_path, parts={"law": part}, seeds=5)
    write_plan(plan)
    lines = status_lines(read_plan(tmp_path / "study"), {})
    assert len(plan.runs) == 1000
    assert "1000 to do" in lines[1]
    assert time.process_time() - started < 60  # no benchmark: a plan that lays out every run takes minutes


def test_a_base_may_lie_beside_its_study(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"base": "smoke", "train": {"rows": 6}}))
    plan = draw(tmp_path, base="own.yaml")
    assert plan.config(plan.runs[0]).train.rows == 6
