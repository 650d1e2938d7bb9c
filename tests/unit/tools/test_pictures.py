"""What all pictures have in common: nothing is made for one that cannot be written."""

from __future__ import annotations

import warnings

import pytest

from tests.no_warnings import no_warnings
from tools.pictures import drawing, save_picture


def draw(output, name="prose") -> None:
    with drawing(output) as pyplot:
        figure, panel = pyplot.subplots(figsize=(1, 1))
        panel.set_title(name)
        save_picture(figure, output)


@pytest.mark.parametrize("name", ["a.jsonl", "a.yml", "a.txt", "a.pgf", "a.rgba"])
def test_an_ending_that_is_no_picture_is_refused_before_a_folder_is_made(tmp_path, name):
    with pytest.raises(ValueError, match=r"not supported; use \.png") as caught:
        draw(tmp_path / "new" / name)
    assert str(caught.value).startswith(str(tmp_path / "new" / name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "begin"), [("a", b"\x89PNG"), ("a.PNG", b"\x89PNG")])
def test_the_ending_chooses_the_format_in_either_case(tmp_path, name, begin):
    draw(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begin)


def test_characters_that_the_font_lacks_are_one_message(tmp_path, capsys):
    with no_warnings():
        draw(tmp_path / "a.png", "日本語の文章")
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the font lacks some characters" in error


def test_another_warning_is_still_shown(tmp_path):
    with pytest.warns(UserWarning, match="of the reader"), drawing(tmp_path / "a.png"):
        warnings.warn("of the reader", UserWarning, stacklevel=1)
