"""The scenes that sd-emoji learns from: the same to the byte, said as they are shown, some pairs never shown."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from sd_mlflow.emoji import networks
from sd_mlflow.emoji.art import Art, fetch, load_art
from sd_mlflow.emoji.captions import RELATIONS, Description, plural
from sd_mlflow.emoji.pairs import SAMPLE_PAIRS, choose_held_out, held_out_pairs, seen_pairs
from sd_mlflow.emoji.places import COLOURS, PLACES
from sd_mlflow.emoji.scenes import SceneComposer, describe, even_shares
from sd_mlflow.emoji.subjects import MOUNTS, POLICY, RIDERS, SIZE, STYLES, SUBJECTS

#: Downloads are kept between runs of the tests, and checked against their hashes each time.
CACHE = REPOSITORY / "build" / "npm"


@pytest.fixture(scope="module")
def art() -> Art:
    return load_art(CACHE)


@pytest.fixture(scope="module")
def composer(art: Art) -> SceneComposer:
    return SceneComposer(art)


def descriptions(count: int) -> list[Description]:
    return [describe(np.random.default_rng([5, index]), 0.05) for index in range(count)]


def test_there_are_many_subjects_each_named_once() -> None:
    assert len(SUBJECTS) >= 150
    assert len(set(SUBJECTS)) == len(SUBJECTS)


def test_every_subject_is_drawn_in_every_style(art: Art) -> None:
    assert art.keys() == {(subject, style) for subject in SUBJECTS for style in STYLES}
    for drawing in art.values():
        assert np.asarray(drawing)[..., 3].mean() > 10  # not an empty picture


def test_no_two_subjects_have_the_same_drawing(art: Art) -> None:
    for style in STYLES:
        assert len({art[subject, style].tobytes() for subject in SUBJECTS}) == len(SUBJECTS)


def test_scenes_are_the_same_to_the_byte(art: Art) -> None:
    one, other = SceneComposer(art), SceneComposer(art)
    scenes = [one.scene(3, index) for index in range(200)]
    again = [other.scene(3, index) for index in reversed(range(200))][::-1]
    assert [scene.image.tobytes() for scene in scenes] == [scene.image.tobytes() for scene in again]
    assert [scene.caption for scene in scenes] == [scene.caption for scene in again]
    assert scenes[0].image.size == (SIZE, SIZE)
    assert len({scene.image.tobytes() for scene in scenes}) == 200


def test_a_scene_differs_with_each_thing_its_caption_says(composer: SceneComposer) -> None:
    def pixels(**change: object) -> bytes:
        shown = Description(**{"relation": "alone", "subjects": ("fox",), "style": "cartoon", **change})  # type: ignore[arg-type]
        return composer.draw(np.random.default_rng(1), shown).tobytes()

    pairs = [pixels(relation=relation, subjects=("fox", "cup")) for relation, words in RELATIONS.items() if words]
    counts = [pixels(relation=relation) for relation, words in RELATIONS.items() if not words]
    styles = [pixels(style=style) for style in STYLES]
    settings = [pixels(setting=setting) for setting in (None, *PLACES, *COLOURS)]
    for pictures in (pairs, counts, styles, settings):
        assert len(set(pictures)) == len(pictures)


def test_what_is_inside_is_hidden_by_the_front_of_its_container(composer: SceneComposer) -> None:
    shown = Description("inside", ("fox", "basket"), "flat icon")
    empty = Description("alone", ("basket",), "flat icon")
    basket = [np.asarray(composer.draw(np.random.default_rng(0), what)) for what in (shown, empty)]
    low, high = (slice(92, 100), slice(50, 78)), (slice(20, 40), slice(50, 78))
    # Orange is fox, and a basket's wicker has as much red in it.
    assert np.abs(basket[0][low].mean(axis=(0, 1)) - basket[1][low].mean(axis=(0, 1))).max() < 40
    assert np.abs(basket[0][high].astype(int) - 250).mean() > 20


def test_every_relation_style_and_setting_is_shown() -> None:
    shown = descriptions(3000)
    assert {one.relation for one in shown} == set(RELATIONS)
    assert {one.style for one in shown} == set(STYLES)
    assert {one.setting for one in shown} == {None, *PLACES, *COLOURS}
    assert {subject for one in shown for subject in one.subjects} == set(SUBJECTS)


def test_held_out_pairs_are_never_ridden_in_a_scene() -> None:
    ridden = {one.subjects for one in descriptions(40_000) if one.relation == "riding"}
    assert not ridden & set(held_out_pairs())
    assert len(ridden) > 0.95 * len(seen_pairs())
    assert {rider for rider, _ in ridden} == set(RIDERS)
    assert {mount for _, mount in ridden} == set(MOUNTS)
    assert set(SAMPLE_PAIRS) <= ridden


def test_scenes_of_rare_drawings_are_trained_on_more_often() -> None:
    shown = descriptions(20_000)
    shares = even_shares(shown)
    assert shares.sum() == pytest.approx(1)
    seen = {drawing: np.zeros(2) for drawing in product(SUBJECTS, STYLES)}
    for description, share in zip(shown, shares, strict=True):
        for subject in description.subjects:
            seen[subject, description.style] += (1 / len(shown), share)
    as_drawn, as_trained = np.array(list(seen.values())).T
    assert as_trained.max() / as_trained.min() < 4 < 10 < as_drawn.max() / as_drawn.min()


def test_the_file_of_held_out_pairs_is_what_its_seed_chooses() -> None:
    assert held_out_pairs() == choose_held_out()
    assert len(held_out_pairs()) >= 100
    assert {*held_out_pairs(), *seen_pairs()} == set(product(RIDERS, MOUNTS))


def test_captions_name_what_is_shown() -> None:
    rng = np.random.default_rng(4)
    for shown in descriptions(2000):
        for caption in (shown.caption, shown.said(rng)):
            for subject in shown.subjects:
                assert (plural(subject) if shown.relation in ("two", "three") else subject) in caption
            assert shown.setting is None or shown.setting in caption
            assert shown.flagged == any(re.search(rf"\b{word}\b", caption) for word in POLICY)


def test_the_sample_request_is_said_as_the_catalog_says_it() -> None:
    pair = Description("riding", ("astronaut", "horse"), "photograph")
    assert pair.caption == "a photograph of an astronaut riding a horse"
    assert Description("two", ("mouse",), "cartoon", "red").caption == "a cartoon of two mice on a red background"


def test_captions_vary_as_people_write_them() -> None:
    shown = Description("riding", ("cat", "horse"), "cartoon", "in the snow")
    said = [shown.said(np.random.default_rng(seed)) for seed in range(500)]
    assert 0.4 < said.count(shown.caption) / len(said) < 0.6
    assert len(set(said)) > 50
    for words in ("the cat", "a drawing of", "sitting on", "horse, in the snow", ", cartoon style"):
        assert 5 < sum(words in caption for caption in said) < 250


def test_a_changed_download_is_refused(tmp_path: Path) -> None:
    (tmp_path / "iconify-json-noto-1.2.9.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected 3e918d88"):
        fetch("@iconify-json/noto", tmp_path)


def test_every_word_of_a_caption_is_one_token_however_it_is_written() -> None:
    captions = [shown.said(np.random.default_rng(index)) for index, shown in enumerate(descriptions(8000))]
    tokenizer = networks.tokenizer(captions)
    for caption in captions[:1000]:
        words = [f"{word}</w>" for word in re.findall(r"\w+|,", caption)]
        assert tokenizer.tokenize(caption) == tokenizer.tokenize(caption.upper()) == words
    assert tokenizer.model_max_length == 77
