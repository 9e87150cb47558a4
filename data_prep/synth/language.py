"""What is said, and what is written about it: sentences, label lists, descriptions.

Every sentence of the grammar belongs to one split for ever, whatever the seed, by a hash of its English text: test
sentences of any corpus are new to a model trained on any other. The words that carry the meaning recur everywhere.
"""

import functools
import itertools
import zlib

import numpy as np

from data_prep.synth.scenes import Scene
from data_prep.synth.vocabulary import EMOTIONS

# Things people talk about in every mood, so that the topic alone tells nothing. (English, Chinese)
_TOPICS = (
    ("the dinner", "这顿晚饭"),
    ("the letter", "这封信"),
    ("the garden", "这个花园"),
    ("the music", "这段音乐"),
    ("the room", "这个房间"),
    ("the plan", "这个计划"),
    ("the picture", "这张照片"),
    ("the story", "这个故事"),
    ("the house", "这座房子"),
    ("the journey", "这次旅行"),
    ("the work", "这份工作"),
    ("the party", "这场聚会"),
)

# Class of words -> (openings, statements about a topic).
_GRAMMAR: dict[str, tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]] = {
    "kind": (
        (
            ("Thank you so much,", "太谢谢你了，"),
            ("My dear friend,", "亲爱的朋友，"),
            ("You are so kind,", "你真好，"),
            ("Bless you,", "祝福你，"),
            ("Well done,", "做得好，"),
        ),
        (
            ("{} is wonderful", "{}棒极了"),
            ("{} is lovely", "{}真可爱"),
            ("{} looks beautiful", "{}看起来真美"),
            ("I love {}", "我喜欢{}"),
            ("I am grateful for {}", "我感谢{}"),
            ("you made {} perfect", "你让{}变得完美"),
            ("I admire {}", "我欣赏{}"),
        ),
    ),
    "neutral": (
        (
            ("By the way,", "顺便说一下，"),
            ("As you know,", "你知道的，"),
            ("For the record,", "记录一下，"),
            ("As planned,", "按照计划，"),
            ("Just so you know,", "告诉你一声，"),
        ),
        (
            ("{} is the same as before", "{}和以前一样"),
            ("{} starts on Monday", "{}星期一开始"),
            ("{} takes about an hour", "{}大约要一个小时"),
            ("I wrote about {}", "我写到了{}"),
            ("I checked {} this morning", "我今天早上看过{}"),
            ("they mentioned {} again", "他们又提到了{}"),
            ("{} is on the list", "{}在单子上"),
        ),
    ),
    "hostile": (
        (
            ("Shut up,", "闭嘴，"),
            ("You idiot,", "你这个白痴，"),
            ("How dare you,", "你怎么敢，"),
            ("Get out of here,", "滚出去，"),
            ("This is your fault,", "这是你的错，"),
        ),
        (
            ("{} is disgusting", "{}令人恶心"),
            ("{} is stupid", "{}真愚蠢"),
            ("{} is rubbish", "{}是垃圾"),
            ("I hate {}", "我恨{}"),
            ("you ruined {}", "你毁了{}"),
            ("nobody wants {}", "没有人想要{}"),
            ("I despise {}", "我鄙视{}"),
        ),
    ),
    "gloomy": (
        (
            ("It is all over,", "一切都结束了，"),
            ("I give up,", "我放弃了，"),
            ("What a pity,", "真可惜，"),
            ("There is no hope,", "没有希望了，"),
            ("We came too late,", "我们来得太晚了，"),
        ),
        (
            ("{} is gone", "{}没有了"),
            ("{} is lost", "{}失去了"),
            ("{} will never come back", "{}再也回不来了"),
            ("we lost {}", "我们失去了{}"),
            ("I miss {}", "我怀念{}"),
            ("nothing is left of {}", "{}什么也没剩下"),
            ("{} has failed", "{}失败了"),
        ),
    ),
}

_SPLIT_OF_HASH = ("train",) * 14 + ("validation",) * 2 + ("test",) * 4

_TEXT_CUES = {
    "kind": ("the words are kind and full of praise", "the speaker says kind and thankful words"),
    "neutral": ("the words are neutral and state a fact", "the speaker only says neutral words"),
    "hostile": ("the words are hostile and insulting", "the speaker says hostile words"),
    "gloomy": ("the words are gloomy and speak of loss", "the speaker says gloomy words without hope"),
}
_VOICE_CUES = {
    "warm": ("the voice is warm and melodic", "the speaker has a warm and soft voice"),
    "flat": ("the voice is flat and slow", "the speaker has a flat and even voice"),
    "sharp": ("the voice is sharp and pressed", "the speaker has a sharp and fast voice"),
    "shaky": ("the voice is shaky and breathy", "the speaker has a shaky and trembling voice"),
}
_FACE_CUES = {
    "smile": ("the person smiles with raised corners of the mouth", "the face shows a clear smile"),
    "neutral": ("the face is neutral and at rest", "the person shows a neutral face"),
    "frown": ("the person frowns with knitted brows", "the face shows a frown with lowered brows"),
    "sad": ("the face is sad with drooping eyes and mouth", "the person looks down with a sad face"),
    "wide": ("the eyes are wide and the brows are raised", "the person has wide eyes and an open mouth"),
}
_CONCLUSIONS = (
    "Taken together, the person seems {}.",
    "This suggests that the person is {}.",
    "All in all, the person appears {}.",
)


@functools.cache
def sentences(text: str, split: str) -> tuple[tuple[str, str], ...]:
    """All sentences of one class of words in one split, as (English, Chinese).

    Args:
      text: one of `scenes.TEXTS`.
      split: train, validation or test.
    """
    openings, statements = _GRAMMAR[text]
    found = []
    for opening, statement, topic in itertools.product((None, *openings), statements, _TOPICS):
        english, chinese = statement[0].format(topic[0]), statement[1].format(topic[1])
        if opening is None:
            english = english[0].upper() + english[1:]
        else:
            english, chinese = f"{opening[0]} {english}", opening[1] + chinese
        english, chinese = english + ".", chinese + "。"
        if _SPLIT_OF_HASH[zlib.crc32(english.encode()) % len(_SPLIT_OF_HASH)] == split:
            found.append((english, chinese))
    return tuple(found)


def draw_sentence(text: str, split: str, rng: np.random.Generator) -> tuple[str, str]:
    """A sentence of one class of words, as (English, Chinese)."""
    pool = sentences(text, split)
    return pool[rng.integers(len(pool))]


def draw_labels(emotion: str, rng: np.random.Generator) -> tuple[str, ...]:
    """One to three words of an emotion group: the group's name, then synonyms in any order."""
    name, *synonyms = EMOTIONS[emotion]
    count = int(rng.integers(len(synonyms) + 1))
    return (name, *(synonyms[i] for i in rng.permutation(len(synonyms))[:count]))


def draw_description(scene: Scene, labels: tuple[str, ...], rng: np.random.Generator) -> str:
    """Text cue, audio cue, video cue and the conclusion, 25 to 45 words, beginning "In the text"."""

    def pick(options: tuple[str, ...]) -> str:
        return options[rng.integers(len(options))]

    feelings = labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
    return (
        f"In the text, {pick(_TEXT_CUES[scene.text])}. In the audio, {pick(_VOICE_CUES[scene.voice])}. "
        f"In the video, {pick(_FACE_CUES[scene.face])}. {pick(_CONCLUSIONS).format(feelings)}"
    )
