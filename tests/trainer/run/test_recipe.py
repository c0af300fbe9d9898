"""Recipes: the shipped ones hold, and what does not hold is refused with its file and key."""

import re
from pathlib import Path
from typing import Any

import pytest

from trainer.choices import shipped
from trainer.model.config import MobileNetConfig, ModelConfig
from trainer.run.recipe import Recipe, RecipeError, load_recipe, with_changes

WHOLE = """
[model]
dim = 16
depth = 1
heads = 2
[front_end]
mels = 64
[optimizer]
rho = 0.05
learning_rate = 1e-3
weight_decay = 0.05
batch = 4
epochs = 2
[data]
crops = "random"
[augmentation]
"""


def written(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


@pytest.mark.parametrize("name", shipped("recipes"))
def test_shipped_recipes_load_and_travel_through_json(name: str) -> None:
    recipe = load_recipe(name)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert (recipe.model.frames, recipe.model.mels) == (recipe.front_end.frames, recipe.front_end.mels)


def test_mobilenet_is_what_two_cpu_cores_can_train_breath_by_breath() -> None:
    recipe = load_recipe("mobilenet")
    assert isinstance(recipe.model, MobileNetConfig) and recipe.model.moments == 25
    assert (recipe.init, len(recipe.init_sha256)) == ("mn04_as_mAP_432.pt", 64)
    assert recipe.front_end.high_hz <= 4003, "SPRSound is 8 kHz audio"
    assert recipe.data.crops == "random", "an event's own length betrays its label"
    assert recipe.optimizer.cycle_loss > 0.0 and recipe.data.whole_windows > 0.0
    assert recipe.data.corpus_balance > 0.0 and recipe.data.device_balance > 0.0


def test_paper_is_the_method_of_the_paper_judged_by_held_out_patients() -> None:
    recipe = load_recipe("paper")
    optimizer, data, augmentation = recipe.optimizer, recipe.data, recipe.augmentation
    assert recipe.init == "hub:MIT/ast-finetuned-audioset-10-10-0.4593"
    sizes = {"frames": 798, "mels": 128, "dropout": 0.3}
    assert isinstance(recipe.model, ModelConfig)
    assert recipe.model == ModelConfig.model_validate(sizes), "AST base is the default"
    assert (recipe.model.pooling, recipe.model.classes, recipe.model.grid) == ("mean", 4, (12, 79))
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.rho) == (1e-5, 1e-4, 0.05)
    assert (optimizer.batch, optimizer.accumulation, optimizer.epochs, optimizer.label_smoothing) == (8, 1, 20, 0.1)
    assert (data.balance, data.patient_balance, data.draws, data.crops, data.members) == ("class", 0.0, 0, "events", 1)
    assert (data.choose_on, recipe.front_end.mean) == ("held-out", 0.0)
    assert augmentation.gain_db > 0.0
    assert augmentation.noise_share > 0.0


def test_as_published_differs_in_what_it_says_and_nothing_else() -> None:
    paper, published = (load_recipe(name).model_dump() for name in ("paper", "paper-as-published"))
    changed = {
        f"{section}.{key}": published[section][key]
        for section in ("model", "front_end", "optimizer", "data", "augmentation")
        for key in paper[section]
        if paper[section][key] != published[section][key]
    }
    assert changed == {
        "model.frames": 1024,
        "front_end.frames": 1024,
        "front_end.seam": "hard",
        "front_end.level": 0.0,
        "front_end.mean": -4.2677393,
        "front_end.std": 4.5689974,
        "data.choose_on": "test",
    }
    assert paper["init"] == published["init"]


def test_a_recipe_by_path_and_the_bands_said_once(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, WHOLE))
    assert (recipe.model.mels, recipe.front_end.mels, recipe.optimizer.batch) == (64, 64, 4)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rho = 0.05", "rho = -1.0", r"optimizer\.rho"),
        ("rho = 0.05", "rho = nan", r"optimizer\.rho"),
        ("learning_rate = 1e-3", "learning_rate = inf", r"optimizer\.learning_rate"),
        ("learning_rate = 1e-3", "", r"optimizer\.learning_rate: Field required"),
        ("batch = 4", "batch = 4\nbtach = 8", r"unknown key optimizer\.btach; the nearest valid one is batch"),
        ("[augmentation]", "[augmentation]\n[modle]", "unknown key modle; the nearest valid one is model"),
        ("mels = 64", "mels = 64\nhop = 200", r"front_end\.hop"),
        ("mels = 64", "mels = 64\nframes = 900", r"front_end\.frames"),
        ("[augmentation]", "[augmentation]\ntime_mask_frames = 799", "augmentation masks more"),
        ("[augmentation]", "[augmentation]\ngain_db = -1.0", r"augmentation\.gain_db"),
        ("dim = 16", "dim = 16\nmels = 80", r"model\.mels 80 is not front_end\.mels 64"),
        ("dim = 16", "dim = 16\nframes = 400", r"model\.frames 400 is not front_end\.frames 798"),
        ("dim = 16", "dim = 16\nclasses = 2", r"model\.classes must be 4"),
        ("heads = 2", "heads = 3", "model: heads 3 does not divide dim 16"),
        ("heads = 2", "haeds = 2", r"unknown key model\.haeds; the nearest valid one is heads"),
        ("[model]", '[model]\narchitecture = "yamnet"', "model: Input tag 'yamnet'"),
        ("dim = 16", 'architecture = "mobilenet"\ndim = 16', r"unknown key model\.dim; the nearest valid one is"),
        ("[model]", 'init_sha256 = "12"\n[model]', "init_sha256: String should match"),
        ('crops = "random"', 'crops = "random"\ncrop_seconds = [4.0, 1.5]', "data: crop_seconds must rise"),
        ('crops = "random"', 'crops = "random"\ncrop_seconds = [1.5, 9.0]', "data: crop_seconds must rise"),
        ("[augmentation]", "[augmentation]\nmel_mask_bands = 65", "augmentation masks more"),
        ("[augmentation]", "[augmentation", "not valid TOML: Expected ']'"),
    ],
)
def test_a_recipe_that_does_not_hold_names_the_file_and_the_key(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert WHOLE.count(old) == 1
    path = written(tmp_path, WHOLE.replace(old, new))
    with pytest.raises(RecipeError, match=words) as raised:
        load_recipe(path)
    assert path in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not re.search(r"Value error|: :", str(raised.value))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe[model]")
    with pytest.raises(RecipeError, match=r"mine\.toml: not valid TOML"):
        load_recipe(str(tmp_path / "mine.toml"))


def test_an_absent_recipe_is_answered_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"'mobilnet'.*mobilenet, paper, paper-as-published"):
        load_recipe("mobilnet")


def test_a_model_is_chosen_by_its_architecture(tmp_path: Path) -> None:
    text = WHOLE.replace("dim = 16\ndepth = 1\nheads = 2", 'architecture = "mobilenet"')
    recipe = load_recipe(written(tmp_path, text))
    assert recipe.model == MobileNetConfig(mels=64), "the bands are said once here, too"
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    ast = load_recipe(written(tmp_path, WHOLE)).model
    assert isinstance(ast, ModelConfig) and ast.moments == 1
    assert with_changes(recipe, {"model": ast.model_dump()}).model == ast


def test_changes_replace_single_values(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, WHOLE))
    changes: dict[str, Any] = {"optimizer.batch": 8, "optimizer.rho": None, "data.crops": "events", "init": "a.pth"}
    changed = with_changes(recipe, changes)
    assert (recipe.init, changed.init, with_changes(changed, {"init": None}).init) == ("", "a.pth", "a.pth")
    assert (changed.optimizer.batch, changed.optimizer.rho, changed.data.crops) == (8, 0.05, "events")
    assert recipe.optimizer.batch == 4
    with pytest.raises(RecipeError, match=r"optimizer\.batch"):
        with_changes(recipe, {"optimizer.batch": 0})
