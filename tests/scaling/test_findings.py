"""What a study's rows say: which are fitted together, and what each other axis changes."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from affectgpt_jax.errors import UserError
from affectgpt_jax.scaling.findings import Options, differences, find, groups_of, measured_flops_per_s
from affectgpt_jax.scaling.rows import Row
from affectgpt_jax.scaling.study import Setting

SIZES = {"0.1M": 1e5, "1M": 1e6, "10M": 1e7}
SETTING = Setting("0.1M", 100, 1, None, None, None, None, "attention")


def row(setting: Setting = SETTING, seed: int = 0, loss: float | None = 1.0, **changes: Any) -> Row:
    """A run that is done."""
    parameters = int(SIZES[setting.size or "0.1M"])
    samples = (setting.captions or 0) * setting.epochs
    name = "-".join(str(one) for one in (*setting, seed))
    found = Row(
        id=name, parts=("law",), setting=setting, seed=seed, status="done", reason="", attempts=1,
        parameters=parameters, body=parameters, trained=parameters, samples=samples, tokens=0, targets=0,
        flops=6.0 * parameters * samples, steps=1, rate=1e-3, loss=loss, losses=(), scores={}, seconds=10.0,
        samples_per_s=None, predicted=None, chip="cpu", finished="",
    )  # fmt: skip
    return found._replace(**changes)


def law(setting: Setting, seed: int, floor: float = 1.0) -> float:
    """A law with a little noise."""
    noise = np.random.default_rng([seed, setting.captions or 0]).normal()
    size = SIZES[setting.size or "0.1M"]
    return float((floor + 40 / size**0.4 + 9 / (setting.captions or 1) ** 0.5) * np.exp(0.002 * noise))


def test_runs_are_fitted_together_that_differ_in_size_captions_and_seed_alone() -> None:
    rows = [
        row(SETTING._replace(size=size, captions=captions, prefusion=kind), seed)
        for size, captions, kind, seed in product(SIZES, (100, 200), ("attention", "none"), (0, 1))
    ]
    other = row(SETTING._replace(captions=400), parts=("law", "longer"))
    groups = groups_of([*rows, other], ["law", "longer"])
    assert {title: len(found) for title, found in groups.items()} == {
        "law: pre-fusion attention": 13,
        "law: pre-fusion none": 12,
        "longer": 1,
    }
    assert groups["longer"][0]["id"] == other.id


def test_a_part_in_which_the_rank_alone_varies_is_one_set_and_fitted_along_it() -> None:
    ranks = (4, 8, 16, 32, 64)
    rows = [row(SETTING._replace(rank=rank), seed, 1 + rank**-0.7) for rank in ranks for seed in (0, 1)]
    (found,) = groups_of(rows, ["law"]).values()
    finding = find("ranks", found, Options(resamples=0))
    assert finding.fit is not None
    assert finding.fit.law.name == "saturating"
    assert finding.fit.values == pytest.approx({"E": 1, "A": 1, "a": 0.7}, rel=1e-3)
    assert finding.optimum is None


@pytest.mark.parametrize(
    ("captions", "epochs", "sizes", "name"),
    [
        ((100, 200, 400), (1,), tuple(SIZES), "chinchilla"),
        ((100, 200, 400), (1, 2, 4), tuple(SIZES), "repeats"),
        ((100, 200, 400, 800), (1,), ("1M",), "saturating"),
    ],
)
def test_the_law_follows_from_what_varies(captions: Any, epochs: Any, sizes: Any, name: str) -> None:
    settings = [SETTING._replace(size=s, captions=c, epochs=e) for s, c, e in product(sizes, captions, epochs)]
    rows = [row(setting, seed, law(setting, seed)) for setting in settings for seed in (0, 1)]
    (found,) = groups_of(rows, ["law"]).values()
    finding = find("", found, Options(resamples=0))
    assert finding.fit is not None
    assert finding.fit.law.name == name


def test_what_carries_no_law_says_what_would() -> None:
    rows = [row(SETTING._replace(captions=captions)) for captions in (100, 200)]
    (found,) = groups_of(rows, ["law"]).values()
    finding = find("", found, Options(resamples=0))
    assert finding.fit is None
    assert "four of one" in finding.why_not
    with pytest.raises(UserError, match="chinchilla"):
        find("", found, Options(law="chinchilla", resamples=0))


def test_differences_are_those_of_pairs_that_are_otherwise_alike() -> None:
    """Pre-fusion adds 0.1 at one size and takes 0.2 at the other; runs without a partner say nothing."""
    change = {"0.1M": 0.1, "1M": -0.2}
    rows = []
    for size, seed in product(change, range(3)):
        setting = SETTING._replace(size=size)
        rows.append(row(setting, seed, 1.0 + seed))
        rows.append(row(setting._replace(prefusion="none"), seed, 1.0 + seed + change[size] + 0.01 * seed))
    rows.append(row(SETTING._replace(captions=900), 0, 50.0))
    rows.append(row(SETTING._replace(size="10M"), 0, None, status="failed"))
    found = differences(rows)
    assert {one.axis for one in found} == {"prefusion"}
    assert {(one.first, one.second) for one in found} == {("attention", "none")}
    by_setting = {one.setting: one for one in found}
    assert set(by_setting) == {"size 0.1M", "size 1M", ""}
    for size, wanted in change.items():
        one = by_setting[f"size {size}"]
        assert (one.pairs, one.change) == (3, pytest.approx(wanted + 0.01))
        # Student's t of three: 4.303 standard errors.
        assert one.high - one.change == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-3)
        assert one.change - one.low == pytest.approx(one.high - one.change)
    assert (by_setting[""].pairs, by_setting[""].change) == (6, pytest.approx(-0.04))


def test_a_single_pair_has_no_interval_and_one_value_no_difference() -> None:
    rows = [row(), row(SETTING._replace(prefusion="none"), loss=0.5)]
    (found,) = differences(rows)
    assert (found.pairs, found.change, found.setting) == (1, pytest.approx(-0.5), "")
    assert np.isnan([found.low, found.high]).all()
    assert differences(rows[:1]) == []


def test_scores_are_compared_as_they_are() -> None:
    rows = [
        row(SETTING._replace(rank=rank), seed, scores={"hit_rate": 0.5 + rank / 100})
        for rank, seed in product((4, 8, 8), (0, 1))
    ]
    (found,) = differences(rows[:4], "hit_rate")
    assert (found.first, found.second, found.change) == (4, 8, pytest.approx(0.04))


def test_the_speed_of_the_runs_counts_all_of_their_time() -> None:
    assert measured_flops_per_s([row(), row(seconds=30.0)]) == pytest.approx(2 * 6e7 / 40)
    assert measured_flops_per_s([row(status="failed")]) is None
