"""Words of subtitle files: everything that is not said is taken off, and nothing that is."""

from pathlib import Path

import pytest

from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.subtitles import Cue, read_cues, read_table, words_between

SUBRIP = """1
00:00:00,000 --> 00:00:01,500
- <i>I have 3 < 4 reasons.</i>
- {\\an8}Really?

2
00:00:02,000 --> 00:00:03,000 X1:10 X2:20
<font color="#fff">- - well,</font>
2024

3
00:00:04,000 --> 00:00:05,000

4
00:00:06,000 --> 00:00:07,000
That's twenty-one -- no, more.
5
00:00:08,000 --> 00:00:09,000
\u2014 Rock &amp; roll
"""

WEB = """WEBVTT - made by hand
Kind: captions

STYLE
::cue { color: red }

NOTE not said

intro
00:00.000 --> 00:01.000 align:start position:0%
<v Roger Bingham><c.loud>We are</c> here</v>

00:01.000 --> 00:02.000
>> No.

00:02.000 --> 00:03.000
No.
"""

LIVE = """WEBVTT

00:00:00.000 --> 00:00:02.000

thank<00:00:00.500><c> you</c><00:00:01.000><c> so</c>

00:00:02.000 --> 00:00:02.010
thank you so

00:00:02.010 --> 00:00:04.000
thank you so
much<00:00:03.000><c> indeed</c>
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SUBRIP, "I have 3 < 4 reasons. Really? - well, 2024 That's twenty-one -- no, more. Rock & roll"),
        (
            SUBRIP.replace("\n", "\r\n"),
            "I have 3 < 4 reasons. Really? - well, 2024 That's twenty-one -- no, more. Rock & roll",
        ),
        (WEB, "We are here No. No."),
        (LIVE, "thank you so much indeed"),
        ("1\n00:00:00,000 --> 00:00:01,000\n", ""),
    ],
)
def test_words(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        assert words_between(read_cues(path)) == expected


def test_times(tmp_path: Path) -> None:
    """A window has the words of the cues that overlap it; one that ends as it begins, or the other way about, not."""
    path = tmp_path / "a.srt"
    path.write_text(SUBRIP, encoding="utf-8")
    cues = read_cues(path)
    assert cues[0] == Cue(0.0, 1.5, "I have 3 < 4 reasons.")
    assert cues[-1] == Cue(8.0, 9.0, "Rock & roll")
    assert words_between(cues, 1.5, 2.0) == ""
    assert words_between(cues, 1.4, 2.1) == "I have 3 < 4 reasons. Really? - well, 2024"
    assert words_between(cues, 8.5, 20.0) == "Rock & roll"
    path.write_text("1:02:03.5 --> 1:02:03,5\nNow.\n", encoding="utf-8")
    assert read_cues(path) == [Cue(3723.5, 3723.5, "Now.")]
    assert words_between(read_cues(path), 3723.5, 3724.0) == "Now."
    path.write_text(LIVE, encoding="utf-8")
    assert read_cues(path) == [Cue(0.0, 2.0, "thank you so"), Cue(2.01, 4.0, "much indeed")]


def test_what_is_no_subtitle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    for content, message in (
        (b"", "has no cue"),
        (b"some words", "has no cue"),
        ("1\n00:00:00,000 --> 00:00:01,000\nL\u00e4rm".encode("latin-1"), "is not UTF-8 text .* save it as UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_cues(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_cues(tmp_path)


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("name,text,english\n0012,a,b\nshort\n", encoding="utf-8-sig")
    assert read_table(path) == {"0012": "b", "short": ""}
    path.write_bytes(b"name,text\n1,\xff\n")
    with pytest.raises(UserError, match="cannot be read as CSV in UTF-8"):
        read_table(path)
