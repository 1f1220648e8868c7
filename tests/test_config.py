"""Configs: what is refused and how, what a run may change, and the config files that are shipped."""

import copy
import json
import runpy

import ml_collections
import pytest
from tiny_config import ROOT
from tiny_run import call, folder_set, refused

from jdepth import config, dry_run, inputs, main, recipe, train
from jdepth.data import protocols, sources
from jdepth.data.sources.rooms import Rooms
from jdepth.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # ml_collections reads config files with it
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"


@pytest.fixture
def trained(monkeypatch):
    """The configs that would have been trained."""
    given = []
    monkeypatch.setattr(train, "train", given.append)
    return given


def flat(**changes):
    """The released recipe with changes of "a.b" keys, as a nested dict."""
    result = copy.deepcopy(recipe.RELEASED)
    for key, value in changes.items():
        *groups, last = key.split(".")
        place = result
        for group in groups:
            place = place[group]
        place[last] = value
    return result


# ---- Overrides on the command line --------------------------------------------------------------------


def test_overrides_reach_the_run(trained):
    assert call(main, QUICKSTART, "--config.alpha=0.8", "--config.batch.depth", 4, "--config.decoder.channels=16") == 0
    assert call(main, QUICKSTART, "--config.alpha=1", "--config.gamma=0.3", "--config.log.tensorboard=False") == 0
    assert call(main, QUICKSTART, "--config.evaluate.input_size=(84, 112)", "--noconfig.log.tensorboard") == 0
    assert (trained[0]["alpha"], trained[0]["batch"]["depth"], trained[0]["decoder"]["channels"]) == (0.8, 4, 16)
    assert trained[1]["gamma"] == 0.3 and trained[1]["beta"] is None and trained[1]["log"]["tensorboard"] is False
    assert trained[2]["evaluate"]["input_size"] == (84, 112) and not trained[2]["log"]["tensorboard"]
    assert type(trained[0]) is dict and trained[0]["workdir"] == "runs/quickstart"


def test_an_empty_tuple_switches_a_crop_off(trained):
    assert call(main, f"--config={ROOT}/configs/nyu_mix6.py", "--config.data.depth.augmentation.fixed_crop=()") == 0
    assert trained[0]["data"]["depth"]["augmentation"]["fixed_crop"] == ()


def test_a_list_given_twice_is_refused_and_a_number_takes_the_last(trained, capsys):
    key = "--config.data.depth.augmentation.crop"
    assert call(main, QUICKSTART, f"{key}=(28, 42)", f"{key}=(42, 28)") == 2
    assert f"{key}: given twice" in capsys.readouterr().err
    assert call(main, QUICKSTART, "--config.alpha=0.5", "--config.alpha=0.8") == 0
    assert trained[0]["alpha"] == 0.8


def test_workdir_is_derived_from_the_file(trained):
    assert call(main, f"--config={ROOT}/configs/nyu_mix6.py") == 0
    assert trained[0]["workdir"] == "runs/nyu_mix6"


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.alpa=0.8", "--config.alpa: unknown key; did you mean alpha?"),
        ("--config.batch.dept=4", "--config.batch.dept: unknown key; did you mean batch.depth?"),
        ("--config.population.decoder=(1, 2)", "--config.population.decoder: unknown key; population has alpha, "),
        ("--config.dry_run", "--config.dry_run: unknown key; did you mean --dry_run?"),
        ("--config.channels=16", "--config.channels: unknown key; did you mean decoder.channels?"),
        ("--config.batch=4", "--config.batch: unknown key; did you mean batch.depth?"),
        ("--config.=4", "--config.: unknown key; the keys are those of jdepth/recipe.py"),
        ("--config=configs/folder.py", "--config: given twice; give one config file"),
        ("--config.xyzzy.q=4", "--config.xyzzy.q: unknown key; the keys are those of jdepth/recipe.py"),
        ("--config.alpha=much", "--config.alpha: 'much' is not a number"),
        ("--config.steps=1.5", "--config.steps: '1.5' is not a whole number"),
        ("--config.gamma=x", "--config.gamma: 'x' is not a number"),
        ("--config.log.tensorboard=perhaps", "--config.log.tensorboard: 'perhaps' is not True or False"),
        ("--config.alpha=1.5", "config.alpha: 1.5 is not within 0 and 1"),
        ("--config.steps=0", "config.steps: 0 is less than 1"),
        ("--config.steps=1" + 12 * "0", "config.steps: 1000000000000 is more than 2147483647"),
        ("--config.task=mldcc", "config.task: 'mldcc' is not one of mldc, segmentation, single_label, reconstruction"),
        ("--config.look_ahead=2", "config.look_ahead: needs config.backbone.train=frozen"),
        ("--config.look_ahead=0", "config.look_ahead: 0 is less than 1"),
        ("--config.evaluate.input_size=84", "config.evaluate.input_size: (84,) must be two whole numbers of pixels"),
        ("--alpha=0.8", "--alpha: unknown flag; did you mean --config.alpha?"),
        ("--dryrun", "Did you mean: dry_run"),
        ("--nodry_run=3", "--nodry_run=3 does not take an argument"),
        ("0.8", "unexpected argument '0.8'"),
    ],
)
def test_a_wrong_override_is_one_line(override, message, trained, capsys):
    line = refused(capsys, main, QUICKSTART, override)
    assert line.startswith(f"error: {message}") or message in line
    assert not trained


# ---- Config files -------------------------------------------------------------------------------------


def test_config_is_asked_for(capsys):
    wanted = "error: --config: name a config file, such as --config configs/quickstart.py"
    assert refused(capsys, main) == refused(capsys, main, "--config=") == wanted
    assert refused(capsys, main, "--dry_run") == wanted
    assert "Missing value for flag --config" in refused(capsys, main, "--config")
    for arguments in (("--config.alpha=0.8",), ("--config.alpha=0.8", QUICKSTART)):
        assert refused(capsys, main, *arguments) == "error: --config.alpha: put --config FILE before it"


def test_a_missing_file(capsys, tmp_path):
    path = tmp_path / "nothere.py"
    expected = f"error: --config: {path}: no such file"
    assert refused(capsys, main, f"--config={path}") == expected
    assert refused(capsys, main, f"--config={path}", "--config.alpha=0.8") == expected
    assert refused(capsys, main, f"--config={tmp_path}") == f"error: --config: {tmp_path}: no such file"


RECIPE = "from jdepth import config, recipe\n"


@pytest.mark.parametrize(
    "content, message",
    [
        ("def get_config(:\n", ", line 1: SyntaxError: invalid syntax"),
        ("hello\n", ", line 1: NameError: name 'hello' is not defined"),
        ("\n\nimport nosuchmodule\n", ", line 3: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def get_config():\n    return {}['a']\n", ", line 2: KeyError: 'a'"),
        ("def get_config():\n    return int('x')\n", ", line 2: ValueError: invalid literal for int()"),
        ("def get_config():\n    open('nothere')\n", ", line 2: FileNotFoundError"),
        ("x = 1\n", ": has no function get_config; see configs/quickstart.py"),
        ("def get_config():\n    pass\n", ": get_config() gives None, expected jdepth.config.wrap(recipe)"),
        ("def get_config():\n    return 3\n", ": get_config() gives 3, expected jdepth.config.wrap(recipe)"),
        (
            RECIPE + "def get_config():\n    return config.wrap(recipe.released(stepz=3))\n",
            ", line 3: KeyError: 'the recipe has no key stepz'",
        ),
    ],
)
def test_a_faulty_file_is_named_with_its_line(content, message, tmp_path, trained, capsys):
    path = tmp_path / "mine.py"
    path.write_text(content)
    line = refused(capsys, main, f"--config={path}")
    assert line.startswith(f"error: --config: {path}{message}")
    assert not trained


def test_keys_missing_from_a_file_or_unknown_in_it(tmp_path, trained, capsys):
    path = tmp_path / "mine.py"
    body = "def get_config():\n    r = recipe.released()\n    {}\n    return config.wrap(r)\n"
    path.write_text(RECIPE + body.format("del r['batch']['depth']"))
    line = refused(capsys, main, f"--config={path}")
    assert line == "error: config.batch.depth: missing; start the config from jdepth.recipe.released()"
    path.write_text(RECIPE + body.format("r['batch']['dept'] = 3"))
    line = refused(capsys, main, f"--config={path}")
    assert line == "error: config.batch.dept: unknown key; did you mean batch.depth?"
    assert not trained


# ---- The schema ---------------------------------------------------------------------------------------


def test_the_released_recipe_passes_and_is_left_alone():
    before = copy.deepcopy(recipe.RELEASED)
    config.check(recipe.released())
    config.check(config.as_dict(config.wrap(recipe.released())))
    assert recipe.RELEASED == before


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("alpha", "0.8", "'0.8' is not a number"),
        ("alpha", True, "True is not a number"),
        ("alpha", float("nan"), "not finite"),
        ("optimizer.rate", float("inf"), "not finite"),
        ("steps", 2.0, "2.0 is not a whole number"),
        ("steps", True, "True is not a whole number"),
        ("log.tensorboard", 1, "1 is not True or False"),
        ("workdir", 3, "3 is not a text"),
        ("evaluate.input_size", 84, "84 is not a list of numbers"),
        ("evaluate.input_size", ("a", "b"), "something else than numbers"),
        ("evaluate.input_size", (0, 84), "two whole numbers"),
        ("data.depth.augmentation.crop", (), "two whole numbers of pixels, such as"),
        ("data.depth.augmentation.crop", (84.5, 112), "two whole numbers"),
        ("data.depth.augmentation.gamma", (1.1, 0.9), "a lowest and a highest number"),
        ("data.depth.augmentation.fixed_crop", (10, 5, 0, 8), "top, bottom, left, right"),
        ("optimizer.beta2", 1.0, "less than 1"),
        ("optimizer.eps", 0.0, "greater than 0"),
        ("precision", "float16", "is not one of bfloat16, float32"),
        ("backbone.train", "frozn", "is not one of frozen, full"),
        ("optimizer.decay", "step", "is not one of cosine, constant"),
        ("backbone.name", "", "name a backbone"),
        ("depth_range.max", 0.0, "0 < min < max"),
        ("gamma", 0.5, "needs config.alpha=1"),
        ("beta", 0.5, "needs config.alpha=1"),
        ("batch.auxiliary", 0, "at least 1, or set config.alpha=1"),
        ("log.every", 7, "is not a multiple of log.every=7"),
        ("checkpoint.every", 500, "is not a multiple of checkpoint.every=500"),
        ("seed", -1, "-1 is less than 0"),
    ],
)
def test_wrong_values_are_refused(key, value, message):
    with pytest.raises(UserError) as caught:
        config.check(flat(**{key: value}))
    line = str(caught.value)
    assert message in line and "config." in line and "\n" not in line


def test_gamma_and_beta_exclude_each_other():
    with pytest.raises(UserError, match="give one of them"):
        config.check(flat(alpha=1.0, gamma=0.5, beta=0.5))
    config.check(flat(alpha=1.0, gamma=0.5) | {"batch": {"depth": 4, "auxiliary": 0}})


def test_every_rule_names_a_key_of_the_recipe():
    known = config.flatten(recipe.RELEASED)
    rules = (*config.CHOICES, *config.AT_LEAST, *config.SHARES, *config.BELOW_ONE, *config.POSITIVE)
    rules += (*config.SIZES, *config.OPTIONAL_SIZES, *config.INTERVALS)
    assert [key for key in rules if key not in known] == []
    tuples = {key for key, value in known.items() if isinstance(value, tuple)}
    checked = {*config.SIZES, *config.OPTIONAL_SIZES, *config.INTERVALS, config.WEIGHTS, "data.depth.augmentation.fixed_crop"}
    # Of a population, each value is checked in its member's config.
    assert tuples == checked | {*config.NAMES} | {f"population.{key}" for key in recipe.RELEASED["population"]}


def test_what_a_run_may_change():
    one = recipe.released()
    other = recipe.released(workdir="a", data_dir="b", data={"workers": 3}, log={"every": 10}, evaluate={"batch": 2})
    assert config.differences(one, other) == []
    assert config.differences(one, json.loads(json.dumps(one))) == []
    changed = config.differences(one, recipe.released(alpha=0.5, batch={"depth": 8}))
    assert changed == ["alpha=0.9 there, 0.5 here", "batch.depth=4 there, 8 here"]


def test_config_survives_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(recipe.released()))
    assert config.read_json(path) == config.as_dict(recipe.released())


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "3", '{"alpha": 0.5}', "\x00\xff"])
def test_a_corrupted_config_json_is_named(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        config.read_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_wrap_keeps_optional_numbers_open():
    wrapped = config.wrap(recipe.released())
    assert isinstance(wrapped, ml_collections.ConfigDict)
    wrapped.gamma = 0.5
    assert config.as_dict(wrapped)["gamma"] == 0.5


# ---- Dry runs -----------------------------------------------------------------------------------------


def shown(capsys, *arguments) -> str:
    assert call(main, *arguments, "--dry_run") == 0
    return capsys.readouterr().out


def test_dry_run_of_the_quickstart(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    out = shown(capsys, QUICKSTART)
    for line in ("vit_nano14, full", "trained parameters", "FLOPs per joint step", "checkpoint on disk"):
        assert line in out
    assert "found: 16384 images" in out and "found: 2048 images" in out
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_its_protocol_fits_its_set(path):
    given = config.as_dict(runpy.run_path(str(path))["get_config"]())
    config.check(given)
    depth = given["data"]["depth"]["name"]
    if depth in sources.RAW_SETS:
        assert given["evaluate"]["protocol"] == depth and given["evaluate"]["split"] == sources.held_out(depth)
        assert given["depth_range"]["max"] == protocols.protocol(depth).max_depth
        assert sources.members(given["data"]["auxiliary"]["name"]) == sources.MIXTURES["mix6"]


def test_dry_run_of_the_paper_without_data_and_weights(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    out = shown(capsys, f"--config={ROOT}/configs/nyu_mix6.py")
    assert "1.14 billion" in out and "dinov2_vitg14, frozen" in out
    for name in ("nyu", "ade20k", "sun37", "cityscapes34", "coco_stuff", "voc21", "context59"):
        assert f"missing: python -m jdepth.prepare {name} --raw DIR --out data" in out
    assert "missing: set config.backbone.weights" in out


def test_classes_of_a_dry_run():
    assert inputs.class_counts(recipe.released(), "mldc") == (150, 37, 34, 171, 21, 59)
    assert inputs.class_counts(recipe.released(), "reconstruction") == (3,) * 6
    rooms = {"auxiliary": {"name": "rooms", "rooms": 4, "rooms_size": (16, 16), "split": "auxiliary"}}
    assert inputs.class_counts(recipe.released(data=rooms), "mldc") == (len(Rooms.classes),)
    absent = {"auxiliary": {"name": "folder"}}
    assert inputs.class_counts(recipe.released(data=absent), "mldc") == (inputs.ASSUMED_CLASSES,)


def test_data_report_says_what_is_wrong(tmp_path):
    description = folder_set(tmp_path / "set")
    given = {"depth": {"name": "folder", "path": str(description)}, "auxiliary": {"name": "folder"}}
    lines = dry_run.data_report(recipe.released(data=given))
    assert "found: 4 images for training" in lines[0]
    assert "not usable: data set 'folder' needs a path" in lines[1]
    (tmp_path / "set" / "train" / "depth" / "a2.png").unlink()
    lines = dry_run.data_report(recipe.released(data=given))
    assert "not usable:" in lines[0] and "train/depth/a2.png" in lines[0]
