"""The documents say what the code does."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from cluster import configuration
from cluster.configuration import CONFIGS_DIR, compose, defaults
from training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "cluster/README.md", ROOT / "training/run.py"]


def _commands(program: str) -> list[list[str]]:
    """The arguments of every call of a program that a document shows."""
    found = []
    for document in DOCUMENTS:
        for match in re.finditer(rf"python -m {re.escape(program)}((?: [\w.]+=[^\s`'\"]*)+)", document.read_text()):
            found.append(shlex.split(match[1]))
    return found


def _overrides_in_tables() -> list[list[str]]:
    """What the README's table of settings says to type, `key=value` once or several times."""
    table = re.search(r"\| to change \| type \|\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert table
    return [code.split() for code in re.findall(r"`([\w.]+=[^`]+)`", table[1])]


def test_every_training_command_in_the_documents_is_understood() -> None:
    """A renamed setting breaks here, and not in a reader's terminal."""
    commands = [
        command for command in _commands("training.run") if not any(each.startswith("resume=") for each in command)
    ]

    assert len(commands) >= 5
    for command in commands:
        known = [argument.replace("=DATASET", "=EXAMS") for argument in command]
        assert compose(TrainConfig, name="train", overrides=known).ds


@pytest.mark.parametrize("overrides", _overrides_in_tables(), ids=" ".join)
def test_every_setting_in_the_readme_is_understood(overrides: list[str]) -> None:
    """One by one, on top of the defaults."""
    compose(TrainConfig, name="train", overrides=["ds=EXAMS", *overrides])


def test_every_folder_job_command_in_the_documents_is_understood() -> None:
    """As above, for `serving.batch`."""
    from serving.batch import BatchConfig

    commands = _commands("serving.batch")

    assert commands
    for command in commands:
        assert compose(BatchConfig, name="predict", overrides=command).md


@pytest.mark.parametrize(
    "override",
    [
        f"{file.parent.name}={file.stem}"
        for file in sorted(CONFIGS_DIR.glob("*/*.yaml"))
        if file.parent.name in defaults("train")
    ],
)
def test_every_file_in_configs_is_a_valid_choice(override: str) -> None:
    """A stale key in one of them would be found by the first user who chooses it."""
    compose(TrainConfig, name="train", overrides=["ds=EXAMS", override])


def test_one_file_holds_the_most_epochs_whatever_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Changed in auto.yaml, the number counts with `trainer=cpu` and `trainer=gpu` too."""
    configs = shutil.copytree(CONFIGS_DIR, tmp_path / "configs")
    auto = configs / "trainer/auto.yaml"
    auto.write_text(auto.read_text().replace("max_epochs: 50", "max_epochs: 7"))
    monkeypatch.setattr(configuration, "CONFIGS_DIR", configs)

    for device in ("auto", "cpu", "gpu"):
        trainer = compose(TrainConfig, name="train", overrides=["ds=EXAMS", f"trainer={device}"]).trainer
        assert (trainer.device, trainer.max_epochs) == (device, 7)


def test_every_file_in_configs_is_covered_by_a_test() -> None:
    """A group that no test composes would be a gap in the one above."""
    groups = {file.parent.name for file in CONFIGS_DIR.glob("*/*.yaml")}

    assert groups <= set(defaults("train"))
    assert {file.name for file in CONFIGS_DIR.glob("*.yaml")} == {"train.yaml", "predict.yaml", "serve.yaml"}


def test_the_readme_names_every_source_file() -> None:
    """Its file map has a line for each, and none for one that is gone."""
    text = (ROOT / "README.md").read_text()
    files = {
        f"{file.parent.name}/{file.name}"
        for room in ("classifier", "cluster", "training", "serving")
        for file in (ROOT / room).glob("*.py")
        if file.name != "__init__.py"
    }
    named = set(re.findall(r"`((?:classifier|cluster|training|serving)/\w+\.py)`", text))

    assert named == files


def test_a_benchmark_s_row_shows_whether_it_meets_its_bar() -> None:
    """A reader sees a ratio and a bar: rounded, a ratio just below its bar would look as if it met it."""
    rows = re.findall(
        r"\| ([\d.]+) \([^|]*\| (>=|<=) ([\d.]+) ?(\*\*missed\*\*)? \|", (ROOT / "BENCHMARKS.md").read_text()
    )

    assert len(rows) > 20
    for shown, sign, bar, missed in rows:
        met = float(shown) >= float(bar) if sign == ">=" else float(shown) <= float(bar)
        assert met == (not missed), (shown, sign, bar)


def test_commands_in_a_container_can_be_interrupted() -> None:
    """`docker exec` hands Ctrl-C on only with -it. What is read by a shell takes no terminal; what goes on by itself, -d."""
    for document in (ROOT / "README.md", ROOT / "cluster/README.md", ROOT / "docker-compose.yml"):
        commands = re.findall(r"docker exec (.*?)modular-ai-app (\S+)", document.read_text())
        assert commands
        for options, command in commands:
            expected = {"cat": [], "tensorboard": ["-d"]}.get(command, ["-it"])
            assert options.split()[:1] == expected, (document, command)


def test_make_help_lists_every_target() -> None:
    """The targets that the documents promise."""
    makefile = (ROOT / "Makefile").read_text()

    for target in ("setup", "demo", "test", "fix", "check", "bench", "serve", "drill", "help"):
        assert re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE), target


def test_links_between_documents_lead_somewhere() -> None:
    """Relative links, in every Markdown file."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cluster/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
