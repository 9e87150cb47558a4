"""What the synthetic corpus means: every modality matters, and nothing else decides."""

from collections import Counter, defaultdict

import pytest

from affectgpt_jax.unibench.table_cache import load_table
from data_prep.synth import language, scenes
from data_prep.synth.scenes import FILMED, FILMED_BY_EMOTION, MODALITIES, SCENES, Scene, needs
from data_prep.synth.specs import SPLITS, ClipSpec, attributes, clip_spec, sample_specs
from data_prep.synth.vocabulary import EMOTIONS, FAMILIES
from tests.conftest import reference_folder

# As a long corpus has them: the emotions equally often, and the scenes of each equally often.
SHARE = {scene: 1 / len(EMOTIONS) / len(same) for same in FILMED_BY_EMOTION.values() for scene in same}


@pytest.fixture(scope="module")
def specs() -> list[ClipSpec]:
    return [spec for split in SPLITS for spec in sample_specs(3, split, 350)]


def test_the_table_gives_every_combination_one_emotion() -> None:
    assert len(SCENES) == len(scenes.TEXTS) * len(scenes.VOICES) * len(scenes.FACES)
    assert set(SCENES.values()) == set(EMOTIONS) == set(FAMILIES)
    assert SCENES[Scene("kind", "sharp", "frown")] == "sarcastic"


@pytest.mark.parametrize("modality", MODALITIES)
def test_without_a_modality_the_best_guess_fails(modality: str) -> None:
    """The best possible answer from the other two modalities, by exact count over the filmed scenes."""
    seen: dict[Scene, Counter[str]] = defaultdict(Counter)
    for scene, share in SHARE.items():
        seen[scene._replace(**{modality: ""})][FAMILIES[SCENES[scene]]] += share
    needy = [scene for scene in FILMED if modality in needs(scene)]
    share_of_needy = sum(SHARE[scene] for scene in needy)
    guess = {partial: families.most_common(1)[0][0] for partial, families in seen.items()}
    hits = sum(SHARE[s] for s in needy if guess[s._replace(**{modality: ""})] == FAMILIES[SCENES[s]])
    assert share_of_needy >= 0.25
    assert hits / share_of_needy <= 0.7


def test_needs_are_counted_from_the_table() -> None:
    # With neutral words and a flat voice each other face but a smile changes the family of a neutral one.
    assert "face" in needs(Scene("neutral", "flat", "neutral"))
    # An insult in a sharp voice with a frown is anger whatever one of the three becomes.
    assert needs(Scene("hostile", "sharp", "frown")) == ()
    assert needs(Scene("neutral", "sharp", "smile")) == ("voice",)


def test_a_third_of_the_clips_needs_two_modalities(specs: list[ClipSpec]) -> None:
    assert sum(len(spec.needs) >= 2 for spec in specs) / len(specs) >= 1 / 3
    for spec in specs[:50]:
        row = attributes(spec)
        assert tuple(m for m in MODALITIES if row[f"needs_{m}"]) == spec.needs == needs(spec.scene)


def test_emotions_are_balanced_in_any_beginning_of_a_split() -> None:
    for count in (70, 240):
        groups = Counter(spec.emotion for spec in sample_specs(5, "test", count))
        assert max(groups.values()) - min(groups.values()) <= 1


def test_splits_and_seeds_share_no_person_and_splits_no_sentence(specs: list[ClipSpec]) -> None:
    for attribute in ("identity", "speaker", "face_id", "voice_id", "english", "chinese"):
        sets = [{getattr(spec, attribute) for spec in specs if spec.split == split} for split in SPLITS]
        assert all(sets)
        assert sum(map(len, sets)) == len(set.union(*sets)), attribute
    other = sample_specs(4, "test", 200)
    assert not {spec.identity for spec in specs} & {spec.identity for spec in other}
    assert not {spec.speaker for spec in specs} & {spec.speaker for spec in other}
    trained_on = {spec.english for spec in specs if spec.split == "train"}
    assert not trained_on & {spec.english for spec in other}


def test_a_clip_depends_on_seed_split_and_index_alone() -> None:
    assert sample_specs(3, "train", 40)[17] == clip_spec(3, "train", 17)
    assert clip_spec(3, "train", 17) != clip_spec(4, "train", 17)
    assert clip_spec(3, "train", 17).identity != clip_spec(3, "test", 17).identity


def test_clips_last_two_to_five_seconds(specs: list[ClipSpec]) -> None:
    seconds = [spec.frames / 25 for spec in specs]
    assert min(seconds) >= 2
    assert max(seconds) <= 5
    assert 2.3 < sum(seconds) / len(seconds) < 3.5


def test_words_that_carry_the_meaning_recur_in_training() -> None:
    for text in scenes.TEXTS:
        pools = {split: language.sentences(text, split) for split in SPLITS}
        words = {split: {word for english, _ in pool for word in english.split()} for split, pool in pools.items()}
        assert len(pools["train"]) > len(pools["test"]) > len(pools["validation"]) > 20
        assert words["test"] | words["validation"] <= words["train"]


def test_labels_and_descriptions(specs: list[ClipSpec]) -> None:
    lengths = set()
    for spec in specs:
        assert spec.labels[0] == spec.emotion == EMOTIONS[spec.emotion][0]
        assert len(set(spec.labels)) == len(spec.labels)
        assert set(spec.labels) <= set(EMOTIONS[spec.emotion])
        lengths.add(len(spec.labels))
        assert spec.description.startswith("In the text, ")
        assert "In the audio, " in spec.description
        assert "In the video, " in spec.description
        assert all(label in spec.description for label in spec.labels)
        assert 25 <= len(spec.description.split()) <= 45
    assert lengths == {1, 2, 3}


def test_emotion_words_lie_on_the_official_wheels() -> None:
    table = load_table(reference_folder("AFFECTGPT_UNIBENCH", "../shared/unibench") / "emotion_wheel")
    classes = {word: table.classes_of(word, "reference") for words in EMOTIONS.values() for word in words}
    primary = {group: classes[group] for group in EMOTIONS}
    for group, words in EMOTIONS.items():
        for word in words:
            on_wheels = [c for c in classes[word] if c is not None]
            assert len(on_wheels) >= 2, word
            # A synonym never lands where its group's name does not, wherever a wheel has both and tells families apart.
            assert classes[word][0] in (None, primary[group][0]), word
    for first in EMOTIONS:
        for second in EMOTIONS:
            both = [(a, b) for a, b in zip(primary[first], primary[second]) if a is not None and b is not None]
            apart = sum(a != b for a, b in both) / len(both)
            if FAMILIES[first] == FAMILIES[second]:
                assert apart <= 0.5, (first, second)
            else:
                assert apart >= 0.75, (first, second)
