"""What a user needs and we do not ship: one table of names, places, terms and sizes.

Everything here was read on the pages that it names. What no page says is None and printed as unknown; the server is
asked when an item is fetched.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal, NamedTuple

from affectgpt_jax.errors import UserError

Group = Literal["base models and encoders", "AffectGPT checkpoints", "data and tables", "MER-UniBench"]
Access = Literal["open", "hub", "hand"]
"""`open`: anyone may download. `hub`: the owner grants it to an account of the Hub. `hand`: no program may or can."""


class Address(NamedTuple):
    """A file at a plain address."""

    url: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Item:
    """Something to get.

    Attributes:
      name: what a person types.
      group: heading of the table.
      purpose: what it is for.
      folder: its folder's name, as configs and the benchmark expect it.
      access: who can have it.
      terms: licence.
      size: bytes, None where no page says; always approximate but for `addresses`.
      fills: what to set to its folder, or with {folder} the words to write.
      fits: dotted settings of a config that it belongs to, with their values.
      repo: OWNER/NAME on the Hub.
      repo_type: "model" or "dataset".
      model: take config, tokenizer and weights only, not other formats of the same weights.
      addresses: files by name, where it is not on the Hub.
      page: where a person reads on.
      grants: who decides, and what one agrees to.
      wait: how long that takes.
      after: what is to be done with it, or how to get it by hand.
    """

    name: str
    group: Group
    purpose: str
    folder: str
    access: Access
    terms: str
    size: int | None = None
    fills: str = ""
    fits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    repo: str = ""
    repo_type: str = "model"
    model: bool = False
    addresses: Mapping[str, Address] = field(default_factory=lambda: MappingProxyType({}))
    page: str = ""
    grants: str = ""
    wait: str = ""
    after: str = ""

    @property
    def root(self) -> str:
        """The folder that its folder goes to by default."""
        return "models" if self.group in ("base models and encoders", "AffectGPT checkpoints") else "data"

    @property
    def size_text(self) -> str:
        return "unknown" if self.size is None else ("" if self.addresses else "about ") + size_text(self.size)


def size_text(size: int) -> str:
    """Bytes for people, decimal as the Hub prints them."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"


def _qwen(size: str, bytes_: int, width: int, layers: int, terms: str) -> Item:
    note = "; also reads labels out of answers (evaluate.extractor)" if size == "7B" else ""
    return Item(
        name=f"qwen2.5-{size.lower()}-instruct",
        group="base models and encoders",
        purpose=f"language model of affectgpt_qwen2.5_{size.lower()}_*{note}",
        folder=f"Qwen2.5-{size}-Instruct",
        access="open",
        terms=terms,
        size=bytes_,
        fills="weights.language",
        fits={"model.decoder.width": width, "model.decoder.layers": layers},
        repo=f"Qwen/Qwen2.5-{size}-Instruct",
        model=True,
        page=f"https://huggingface.co/Qwen/Qwen2.5-{size}-Instruct",
    )


def _mer(year: int, access_note: str) -> Item:
    return Item(
        name=f"mer{year}",
        group="MER-UniBench",
        purpose=f"clips and labels of the MER{year} challenge, raw",
        folder=f"MER{year}",
        access="hub",
        terms="CC BY-NC 4.0 and EULA, academic research only",
        repo=f"MERChallenge/MER{year}",
        repo_type="dataset",
        page=f"https://huggingface.co/datasets/MERChallenge/MER{year}",
        grants=_MER_OWNER,
        wait=_MER_WAIT,
        after=access_note,
    )


_MER_OWNER = (
    "Intelligent Interaction Group (merchallenge.contact@gmail.com); a form on the page: not passed on or changed"
)
_MER_WAIT = "the Hub lists it as granted automatically; the page speaks of approval"
_PROCESSED = "`affectgpt benchmark` reads the authors' processed folder, {}: " + (
    "Baidu, link under MER-UniBench in the README of github.com/zeroQiaoba/AffectGPT"
)
_AFFECTGPT = "the authors of AffectGPT"
_BAIDU = "no form; a Baidu account"
_CHECKPOINT = (
    "`affectgpt convert weights {folder} RUN weights.language=DIR weights.vision=DIR weights.audio=DIR`, "
    "see docs/conversion.md"
)


def _baidu_checkpoint(corpus: str, stream: str, epoch: int, link: str) -> Item:
    """Baselines of MER2025, from the README of MERTools/MER2025/MER2025_Track23."""
    title = {"mercaptionplus": "MER-Caption+", "ovmerd": "OV-MERD"}[corpus]
    return Item(
        name=f"affectgpt-{corpus}-{stream}" + ("-mer2025" if (corpus, stream) == ("mercaptionplus", "face") else ""),
        group="AffectGPT checkpoints",
        purpose=f"AffectGPT-7B trained on {title}, sees {stream}s; the challenge's baseline takes epoch {epoch}",
        folder=f"{corpus}_outputhybird_bestsetup_bestfusion_{stream}_lz",
        access="hand",
        terms="repository: Apache-2.0, for non-commercial use only",
        page=link,
        grants=f"{_AFFECTGPT}; {_BAIDU}",
        after=f"download it from Baidu by hand; then {_CHECKPOINT}",
    )


_WHEELS = (
    "https://raw.githubusercontent.com/zeroQiaoba/MERTools/fb8dda0ebd52281f69affcbec3cc34dfd281f1ba/"
    "MER2025/MER2025_Track23/emotion_wheel/"
)
_WHEEL_FILES = {
    "format.csv": (102923, "ba6de7d61db8e129d1d7ef8a2aae22a9e93a2c2e3e683e6f2735d04455f016f2"),
    "synonym.xlsx": (60207, "23f81f9ab1d2418aaf96775304fb5dc52c62bb5d5ef652a97471d045fc9d2e29"),
    "wheel1.xlsx": (10477, "e70485d354b82a7491ff24648273182a5f4f13f92c76e6b3e4f9033f5e6afcc1"),
    "wheel2.xlsx": (11697, "acc001e076a8e60440361f58dd8c05ed900c4890c84bb7d8d1df93708a7d9c87"),
    "wheel3.xlsx": (9632, "d62f30bf88c17c55876634cd088eacaef98278fc25457474364439872f9dbf83"),
    "wheel4.xlsx": (10105, "660260561b7fe15550f3679a01e7c783608ce3403d4c28db0a88520f68d83aea"),
    "wheel5.xlsx": (9713, "2dd4595b2cf8e7628ca06a416a8e38ac831614b244f23d1ae613dc34007649f1"),
}


def _benchmark(name: str, title: str, folder: str, owner: str, page: str, *, terms: str, after: str = "") -> Item:
    return Item(
        name=name,
        group="MER-UniBench",
        purpose=f"clips and labels of {title}",
        folder=folder,
        access="hand",
        terms=terms,
        fills="--data-root (the folder above)",
        page=page,
        grants=owner,
        after=after or _PROCESSED.format(folder),
    )


CATALOGUE: tuple[Item, ...] = (
    # Sizes of 0.5B and 1.5B: parameters of the configs in bfloat16. The others: sums of the files on the pages.
    _qwen("7B", 15_230_000_000, 3584, 28, "Apache-2.0"),
    _qwen("3B", 6_170_000_000, 2048, 36, "Qwen Research License, non-commercial"),
    _qwen("1.5B", 3_090_000_000, 1536, 28, "Apache-2.0"),
    _qwen("0.5B", 988_000_000, 896, 24, "Apache-2.0"),
    Item(
        name="clip-vit-large-patch14",
        group="base models and encoders",
        purpose="vision encoder of every affectgpt_* config",
        folder="clip-vit-large-patch14",
        access="open",
        terms="the page names none",
        size=1_710_000_000,
        fills="weights.vision",
        fits={"model.vision_width": 768},
        repo="openai/clip-vit-large-patch14",
        model=True,
        page="https://huggingface.co/openai/clip-vit-large-patch14",
    ),
    Item(
        name="chinese-hubert-large",
        group="base models and encoders",
        purpose="audio encoder of every affectgpt_* config",
        folder="chinese-hubert-large",
        access="open",
        terms="MIT",
        size=1_260_000_000,
        fills="weights.audio",
        fits={"model.audio_width": 1024},
        repo="TencentGameMate/chinese-hubert-large",
        model=True,
        page="https://huggingface.co/TencentGameMate/chinese-hubert-large",
        after="published as a torch file; it is rewritten as safetensors here, without torch",
    ),
    Item(
        name="affectgpt-mercaptionplus-face",
        group="AffectGPT checkpoints",
        purpose="the paper's AffectGPT-7B, trained on MER-Caption+, sees faces; the authors call it "
        "emercoarse_highlevelfilter4_outputhybird_bestsetup_bestfusion_lz and score epochs 30 to 60",
        folder="affectgpt-mercaptionplus-face",
        access="open",
        terms="MIT",
        repo="MERChallenge/AffectGPT",
        page="https://huggingface.co/MERChallenge/AffectGPT",
        after=f"--dry-run lists its files, --only takes some of them; then {_CHECKPOINT}",
    ),
    _baidu_checkpoint("mercaptionplus", "face", 35, "https://pan.baidu.com/s/1R2q9_ZLtn6tgfUs4zX8gUw?pwd=givh"),
    _baidu_checkpoint("mercaptionplus", "frame", 30, "https://pan.baidu.com/s/1iO-KyekHH3t7hDOVHy4ypg?pwd=yex1"),
    _baidu_checkpoint("ovmerd", "face", 40, "https://pan.baidu.com/s/1nsp1FUnYAXKMJ5kURGFc2A?pwd=ujsi"),
    _baidu_checkpoint("ovmerd", "frame", 45, "https://pan.baidu.com/s/1Z01zSUAIlEoBaW5V7I1Pfg?pwd=4xen"),
    Item(
        name="emotion-wheels",
        group="data and tables",
        purpose="the five wheels, synonyms and word forms that published scores group words by",
        folder="emotion_wheel",
        access="open",
        terms="Apache-2.0",
        size=sum(size for size, _ in _WHEEL_FILES.values()),
        fills="--wheel-dir or AFFECTGPT_WHEEL_DIR",
        addresses={name: Address(_WHEELS + name, *about) for name, about in _WHEEL_FILES.items()},
        page="https://github.com/zeroQiaoba/MERTools/tree/master/MER2025/MER2025_Track23/emotion_wheel",
    ),
    Item(
        name="mer2025",
        group="data and tables",
        purpose="training data: MER-Caption+ (31,327 clips) and OV-MERD (332), with 132,171 videos, sound, face crops "
        "and subtitles",
        folder="mer2025-dataset",
        access="hub",
        terms="CC BY-NC 4.0 and EULA, academic research only",
        fills="prepare.corpus=mercaptionplus:{folder}",
        repo="MERChallenge/MER2025",
        repo_type="dataset",
        page="https://huggingface.co/datasets/MERChallenge/MER2025",
        grants=_MER_OWNER,
        wait=_MER_WAIT,
        after="split archives are unpacked with `7z x NAME_split.zip`; then `affectgpt data check "
        "mercaptionplus:{folder}`",
    ),
    _mer(2023, _PROCESSED.format("mer2023-dataset-process")),
    _mer(2024, _PROCESSED.format("mer2024-dataset-process")),
    _benchmark(
        "meld",
        "MELD (clips of a TV series)",
        "meld-process",
        "DeCLaRe Lab; the raw archive, MELD.Raw.tar.gz, is linked there without a form",
        "https://github.com/declare-lab/MELD",
        terms="repository: GPL-3.0",
    ),
    _benchmark(
        "iemocap",
        "IEMOCAP",
        "iemocap-process",
        "SAIL, University of Southern California; its licence and a request form",
        "https://sail.usc.edu/iemocap/iemocap_release.htm",
        terms="data release form of SAIL",
    ),
    _benchmark(
        "cmu-mosi",
        "CMU-MOSI",
        "cmumosi-process",
        "MultiComp Lab, Carnegie Mellon University; raw data are linked from its SDK",
        "https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK",
        terms="unknown",
    ),
    _benchmark(
        "cmu-mosei",
        "CMU-MOSEI",
        "cmumosei-process",
        "MultiComp Lab, Carnegie Mellon University; raw data are linked from its SDK",
        "https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK",
        terms="unknown",
    ),
    _benchmark(
        "ch-sims",
        "CH-SIMS",
        "sims-process",
        "THUIAR, Tsinghua University; links on its page",
        "https://thuiar.github.io/sims.github.io/chsims",
        terms="unknown",
    ),
    _benchmark(
        "ch-sims-v2",
        "CH-SIMS v2",
        "simsv2-process",
        "THUIAR, Tsinghua University; Google Drive or Baidu, links on its page",
        "https://github.com/thuiar/ch-sims-v2",
        terms="unknown",
    ),
    _benchmark(
        "ov-merd-plus",
        "OV-MERD+",
        "ovmerdplus-process",
        f"{_AFFECTGPT}; no form, Baidu or TeraBox",
        "https://github.com/zeroQiaoba/AffectGPT/issues/29",
        terms="unknown; its clips are those of MER2025 (CC BY-NC 4.0)",
        after="the page has the authors' links; 332 of its clips are in mer2025 as OV-MERD",
    ),
)


def find_item(name: str) -> Item:
    """An item by name.

    Raises:
      UserError: there is none; the message has the nearest names.
    """
    items = {item.name: item for item in CATALOGUE}
    if name in items:
        return items[name]
    near = get_close_matches(name.lower().rpartition("/")[2], items, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "`affectgpt fetch` lists all names"
    raise UserError(f"{name!r} is nothing that can be fetched; {hint}")


_ACCESS = {"open": "open", "hub": "granted by the owner", "hand": "by hand"}


def access_text(item: Item) -> str:
    """Who can have it, in words."""
    return _ACCESS[item.access]


def markdown() -> str:
    """The access tables of docs/fetch.md."""
    lines = []
    for group in dict.fromkeys(item.group for item in CATALOGUE):
        lines += [f"### {group[0].upper()}{group[1:]}", ""]
        lines += ["| name | what for | size | terms | access | who grants it, how long | page |", "| --- " * 7 + "|"]
        for item in CATALOGUE:
            if item.group != group:
                continue
            wait = f"; {item.wait or 'how long: unknown'}" if item.access != "open" else ""
            cells = [f"`{item.name}`", item.purpose, item.size_text, item.terms, access_text(item)]
            cells += [f"{item.grants or 'nobody needs to'}{wait}", f"<{item.page}>"]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
