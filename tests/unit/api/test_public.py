"""Tests of the public names of the package."""

import inspect
import subprocess
import sys
from dataclasses import asdict

import pytest

import segrec_batch
from segrec_batch.api import evaluate
from segrec_batch.api.categories import evaluate_categories
from segrec_batch.api.index import index_images
from segrec_batch.api.train import DEFAULTS, complete, training_settings
from segrec_batch.cli.evaluate import MEASURES, METHODS
from segrec_batch.cli.feedback import WEIGHTS
from segrec_batch.cli.main import build_parser
from segrec_batch.common.errors import InputError, SegrecError
from segrec_batch.evaluation.drift import figures
from segrec_batch.evaluation.drift.comparison import Settings as DriftSettings
from segrec_batch.evaluation.retrieval.methods import BASE_METHODS
from segrec_batch.evaluation.retrieval.run import RetrievalOptions
from segrec_batch.evaluation.retrieval.settings import PAPER_WINDOW
from segrec_batch.evaluation.segmentation.rivals import RIVALS
from segrec_batch.model.engine_choice import choose_engine
from segrec_batch.pipeline.plan import DEFAULT_MAX_GONE
from segrec_batch.pipeline.run import Execution
from segrec_batch.search.feedback.refine import Weights
from segrec_batch.training.rivals.unet import UNetSettings
from segrec_batch.training.trainer import DEFAULT_SIZE, Settings

NAMES = [name for name in segrec_batch.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_public_name_is_importable_and_documented(name: str) -> None:
    value = getattr(segrec_batch, name)
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        hints = inspect.signature(value)
        assert hints.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not p.empty for p in hints.parameters.values())


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("Error") and n != "ImageError"])
def test_public_errors_are_segrec_errors(name: str) -> None:
    assert issubclass(getattr(segrec_batch, name), SegrecError)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'index_pictures'"):
        _ = segrec_batch.index_pictures


def test_listing_public_names_imports_nothing() -> None:
    code = "import segrec_batch, sys; dir(segrec_batch); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = [m for m in done.stdout.split() if m.startswith("segrec_batch")]
    assert modules == ["segrec_batch"]


def options_of(*command: str) -> dict[str, object]:
    """Return destinations and defaults of the options of a command."""
    parser = build_parser(command[0])
    for word in command:
        (groups,) = (a for a in parser._actions if a.choices and a.dest == "==SUPPRESS==")
        parser = groups.choices[word]  # type: ignore[index,assignment]
    return {a.dest: a.default for a in parser._actions}


@pytest.mark.parametrize(
    ("function", "command"),
    [
        (index_images, ("index",)),
        (evaluate.evaluate_segmentation, ("evaluate", "segmentation")),
        (evaluate.evaluate_retrieval, ("evaluate", "retrieval")),
        (evaluate_categories, ("evaluate", "categories")),
        (evaluate.evaluate_drift, ("evaluate", "drift")),
        (evaluate.compare_reports, ("evaluate", "compare")),
    ],
)
def test_parameters_are_the_options_of_the_command(
    function: object, command: tuple[str, ...]
) -> None:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    names = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    assert names <= options_of(*command).keys()


def test_options_of_training_are_its_parameters() -> None:
    assert DEFAULTS.keys() <= options_of("train").keys()
    assert DEFAULTS.keys() <= options_of("evaluate", "segmentation").keys()
    with pytest.raises(TypeError, match="no parameter size of training"):
        complete({"size": 3})  # type: ignore[typeddict-unknown-key]


def test_defaults_are_those_of_the_library() -> None:
    engine = choose_engine("torch", "float32")
    assert training_settings(DEFAULTS, engine) == Settings(engine=engine)
    assert DEFAULTS["input_size"] == DEFAULT_SIZE
    index, execution = index_images.__kwdefaults__, Execution()
    assert index["max_gone"] == str(DEFAULT_MAX_GONE)
    assert index["wait"] == execution.wait_seconds
    for name in ("device", "batch_size", "commit_seconds", "gpus", "engine", "precision"):
        assert index[name] == getattr(execution, name)
    retrieval = evaluate.evaluate_retrieval.__kwdefaults__
    assert retrieval["sigma"] == RetrievalOptions.windows
    assert retrieval["epsilon"] == RetrievalOptions.epsilons
    assert retrieval["window"] == PAPER_WINDOW
    for name in ("methods", "queries", "feedback_rounds", "seed", "version", "images_roots"):
        assert retrieval[name] == getattr(RetrievalOptions, name)
    drift = evaluate.evaluate_drift.__kwdefaults__
    for name in ("before", "after", "golden", "golden_size", "k", "seed"):
        assert drift[name] == getattr(DriftSettings, name)
    assert asdict(Weights()) == WEIGHTS
    segmentation = evaluate.evaluate_segmentation.__kwdefaults__
    assert segmentation["rivals"] == RIVALS
    assert segmentation["unet_epochs"] == UNetSettings.epochs


def test_help_names_the_methods_and_measures_of_the_library() -> None:
    assert ", ".join(BASE_METHODS) == METHODS
    assert ", ".join(figures.MEASURES) == MEASURES


def test_a_limit_that_is_none_is_an_input_error() -> None:
    with pytest.raises(InputError, match="neither a share like 1% nor a count"):
        index_images("i", "m", "x", max_gone="many")
