"""One frozen object from YAML and command line; or one line that names the key."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from classifier.errors import ConfigError
from cluster import configuration
from cluster.configuration import Section, compose, defaults, help_rows, leaf_keys, validate


class Model(Section):
    model_name: str = Field(min_length=1, description="which network")
    lr: float = Field(gt=0, le=10, description="learning rate")
    config: dict[str, Any] | None = Field(description="free fields")


class Stopping(Section):
    patience: int = Field(ge=0, description="epochs without a better one")


class Callbacks(Section):
    early_stopping: Stopping | None = Field(description="null for none")


class Trainer(Section):
    device: Literal["auto", "cpu", "gpu"] = Field(description="on what")
    max_epochs: int = Field(ge=1, description="the most epochs")


class Config(Section):
    ds: str | None = Field(description="the dataset")
    file: Path | None = Field(description="one picture")
    num_workers: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(description="how many")
    keep: bool = Field(description="whether")
    model: Model
    callbacks: Callbacks
    trainer: Trainer


@pytest.fixture(autouse=True)
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small `configs/` of two groups."""
    folder = tmp_path / "configs"
    for name, text in {
        "run.yaml": "defaults: [trainer: auto, model: default, _self_]\nds: null\nfile: null\nnum_workers: auto\nkeep: true\n"
        "callbacks: {early_stopping: {patience: 3}}\n",
        "trainer/auto.yaml": "device: auto\nmax_epochs: 50\n",
        "trainer/cpu.yaml": "device: cpu\nmax_epochs: 15\n",
        "trainer/gpu.yaml": "defaults: [auto, _self_]\ndevice: gpu\n",
        "model/default.yaml": "model_name: google/vit\nlr: 1e-4\nconfig: null\n",
        "logger/none.yaml": "tensorboard: false\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(configuration, "CONFIGS_DIR", folder)
    return folder


def composed(*overrides: str) -> Config:
    return compose(Config, name="run", overrides=overrides)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        composed(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_come_from_the_yaml() -> None:
    """The schema has none of its own."""
    config = composed()
    assert config.model == Model(model_name="google/vit", lr=1e-4, config=None)
    assert (config.trainer.device, config.trainer.max_epochs) == ("auto", 50)
    assert defaults("run")["trainer"]["max_epochs"] == 50


def test_the_command_line_wins() -> None:
    """Values of every type, a group's file, and a value inside it."""
    config = composed("ds=EXAMS", "num_workers=4", "model.lr=2e-3", "trainer=cpu", "trainer.max_epochs=2", "keep=false")
    assert (config.ds, config.num_workers, config.model.lr, config.keep) == ("EXAMS", 4, 0.002, False)
    assert config.trainer == Trainer(device="cpu", max_epochs=2)


def test_a_part_can_be_switched_off() -> None:
    """`callbacks.early_stopping=null`."""
    assert composed("callbacks.early_stopping=null").callbacks.early_stopping is None
    early = composed("callbacks.early_stopping.patience=7").callbacks.early_stopping
    assert early is not None
    assert early.patience == 7


def test_free_fields_can_be_set_one_by_one_or_as_a_whole() -> None:
    """A Hugging Face config on the command line."""
    config = composed("model.config={model_type: vit, image_size: 32}")
    assert config.model.config == {"model_type": "vit", "image_size": 32}


@pytest.mark.parametrize(
    "text",
    [
        "\\${x}",
        "\\\\'",
        "photo (1).jpg",
        "it's",
        'say "cheese".png',
        "a=b",
        "a,b",
        "[x]",
        "{x}",
        "100%",
        "2024",
        "1e5",
        "true",
        "~/x y/z",
        "$HOME",
        "${HOME}",
        "${oc.env:HOME}",
        "back\\slash",
        "ends with \\",
        "#5",
        "a: b",
        "-x",
        "naïve Ü 写真",
        " spaces ",
        "a\tb",
        "@x",
        "!x",
        "&x *y",
        "it\\'s",
    ],
)
def test_free_text_is_taken_as_it_stands(text: str) -> None:
    """A file or class name may hold anything; only the shell's own quoting is needed."""
    config = composed(f"ds={text}", f"file={text}")
    assert config.ds == text
    assert config.file == Path(text)


@pytest.mark.parametrize("quoted", ["'two words'", '"two words"'])
def test_text_may_be_quoted_hydras_way(quoted: str) -> None:
    """For those who know it."""
    assert composed(f"ds={quoted}").ds == "two words"


def test_null_is_nothing() -> None:
    """`ds=null` is not a dataset of that name."""
    assert composed("ds=null").ds is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("modle.lr=1", "modle.lr: no such setting; did you mean model.lr?"),
        ("lr=1", "lr: no such setting; did you mean model.lr?"),
        ("model.learning=1", "model.learning: no such setting"),
        ("trianer=cpu", "trianer: no such setting; did you mean trainer?"),
        ("zzzzqqqq=1", "zzzzqqqq: no such setting; --help lists the keys"),
        ("+surprise=1", "surprise: no such setting"),
        ("trainer.device.x=1", "trainer.device.x"),
        ("trainer=tpu", "trainer=tpu: expected one of auto, cpu, gpu (files in configs/trainer/)"),
        ("trainer=../run", "trainer=../run: expected one of auto, cpu, gpu"),
        ("model=google/vit", "expected one of default (files in configs/model/); for a model by its name or folder: "),
        ("model=google/vit", "folder: model.model_name=google/vit"),
        ("logger=none", "logger: no such setting"),
        ("EXAMS", "EXAMS: expected key=value, for example ds=EXAMS"),
        ("--ds", "--ds: expected key=value, for example ds=EXAMS (no spaces, no dashes)"),
        ("--ds=EXAMS", "--ds=EXAMS: settings are written without dashes: ds=EXAMS"),
        ("~callbacks", "~callbacks: expected key=value"),
        ("model.lr=0", "model.lr=0: input should be greater than 0"),
        ("model.lr=-1", "model.lr=-1"),
        ("model.lr=fast", "model.lr=fast: input should be a valid number"),
        ("model.lr=nan", "model.lr=nan"),
        ("num_workers=many", "num_workers=many: input should be a valid integer"),
        ("num_workers=0", "num_workers=0: input should be greater than or equal to 1 or 'auto'"),
        ("num_workers=1.5", "num_workers=1.5"),
        ("trainer.max_epochs=0", "trainer.max_epochs=0: input should be greater than or equal to 1"),
        ("trainer.max_epochs=null", "trainer.max_epochs=null"),
        ("trainer.device=tpu", "trainer.device=tpu: input should be 'auto', 'cpu' or 'gpu'"),
        ("model.model_name=", "model.model_name="),
        ("model=null", "model=null"),
        ("callbacks.early_stopping=false", "such as callbacks.early_stopping.patience; null switches it off"),
        ("callbacks=null", "callbacks=null: expected settings below it, such as callbacks.early_stopping.patience"),
        ("callbacks.early_stopping.patience=soon", "callbacks.early_stopping.patience=soon"),
        ("keep=perhaps", "keep=perhaps"),
        ("model.lr=[1", "the settings cannot be read: no viable alternative at input '[1'"),
        ("model.lr=${nothing}", "nothing"),
        ("=1", "=1"),
        ("", "expected key=value"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(override: str, words: str) -> None:
    """Found, expected, and for a wrong key the nearest that exists."""
    assert words in refusal(override)


class Job(Section):
    """Settings of another command, which names the same things differently."""

    md: str | None = Field(description="the model")
    device: str = Field(description="on what")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model=EXAMS", "model: no such setting; did you mean md?"),
        ("trainer=cpu", "trainer: no such setting; did you mean device?"),
        ("EXAMS", "for example md=EXAMS"),
    ],
)
def test_another_commands_settings_are_no_groups_of_this_one(configs: Path, override: str, words: str) -> None:
    """The likeliest slip of those who use both."""
    (configs / "job.yaml").write_text("md: null\ndevice: auto\n")
    with pytest.raises(ConfigError) as caught:
        compose(Job, name="job", overrides=[override])
    assert words in str(caught.value)


def test_a_missing_value_and_an_unknown_one_in_the_yaml_are_named(configs: Path) -> None:
    """Somebody's own file is checked as the command line is."""
    (configs / "trainer" / "mine.yaml").write_text("device: cpu\n")
    assert "trainer.max_epochs: not set" in refusal("trainer=mine")
    (configs / "trainer" / "mine.yaml").write_text("device: cpu\nmax_epochs: 3\nmax_epoch: 4\n")
    assert "trainer.max_epoch: no such setting; did you mean trainer.max_epochs?" in refusal("trainer=mine")
    (configs / "trainer" / "mine.yaml").write_text("device: [cpu\n")
    assert "mine.yaml" in refusal("trainer=mine")


def test_a_configuration_is_frozen() -> None:
    """Nothing changes it below the entry point."""
    config = composed()
    with pytest.raises(ValidationError, match="frozen"):
        config.ds = "OTHER"  # type: ignore[misc]


def test_saved_settings_can_be_the_base() -> None:
    """Going on with a run: its own settings, and what the command line changes of them."""
    base = composed("ds=EXAMS", "model.lr=0.5").model_dump(mode="json")
    again = compose(Config, name="run", overrides=["trainer=cpu", "model.model_name=a b"], base=base)
    assert (again.ds, again.model.lr, again.model.model_name) == ("EXAMS", 0.5, "a b")
    assert again.trainer == Trainer(device="cpu", max_epochs=15)


def test_a_groups_file_may_rest_on_another() -> None:
    """On top of the defaults and of saved settings alike."""
    saved = composed("ds=EXAMS", "trainer=cpu").model_dump(mode="json")
    for found in (composed("trainer=gpu"), compose(Config, name="run", overrides=["trainer=gpu"], base=saved)):
        assert found.trainer == Trainer(device="gpu", max_epochs=50)


def test_every_key_has_a_help_row() -> None:
    """In the schema's order, with its default and what it does."""
    rows = list(help_rows(Config, defaults("run")))
    assert [key for key, _, _ in rows] == list(leaf_keys(Config))
    assert ("trainer.max_epochs", "50", "the most epochs") in rows
    assert ("ds", "", "the dataset") in rows
    assert ("trainer.device", "auto", "on what; one of auto, cpu, gpu") in rows
    assert ("callbacks.early_stopping.patience", "3", "epochs without a better one") in rows


def test_a_plain_dictionary_is_checked_the_same_way() -> None:
    """For those who do not go through Hydra, as the endpoint's arguments."""
    assert validate(Stopping, {"patience": "3"}).patience == 3
    with pytest.raises(ConfigError, match="patienc: no such setting; did you mean patience"):
        validate(Stopping, {"patience": 3, "patienc": 3})
    with pytest.raises(ConfigError, match="should be a valid dictionary"):
        validate(Stopping, 3)


def test_composing_twice_is_possible() -> None:
    """Hydra keeps a global state: it must be given back, after an error too."""
    for _ in range(2):
        refusal("trainer=tpu")
        composed("ds=EXAMS")
        refusal("model.lr=[1")
