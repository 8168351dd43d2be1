"""`softless bench KIND`: each kind has a signature and a help of its own."""

import inspect

import pytest

from softless.cli.bench import KINDS, LAB, bench, function_of
from softless.cli.main import main, parser_for
from softless.errors import UsageError

TRAINED = [kind for kind, what in KINDS.items() if what.trains]


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("twins", "long", True),
        ("twins", "ops", ["sima"]),
        ("compare", "op", "sima"),
        ("runs", "ops", ["sima"]),
        ("twins", "runs", ["a"]),
        ("latency", "recipe", "digits"),
    ],
)
def test_an_option_of_another_kind_is_refused(kind, option, value):
    with pytest.raises(UsageError, match=f"no option of bench {kind} named '{option}'"):
        bench(kind, **{option: value})


@pytest.mark.parametrize("kind", KINDS)
def test_the_options_of_a_kind_are_its_function_s(kind):
    """Each described in its docstring, and in the help."""
    measure, text = function_of(kind), parser_for(f"bench {kind}").format_help()
    for name in inspect.signature(measure).parameters:
        assert f"        {name}: " in (measure.__doc__ or ""), name
        assert name.replace("_", "-") in text.lower() or name.upper() in text


@pytest.mark.parametrize("kind", TRAINED)
def test_whatever_trains_takes_data_epochs_and_fields(kind):
    """Each comes to the recipe, whose first fault is said before any work."""
    recipe = "dino" if kind == "dino" else "classify"
    with pytest.raises(UsageError, match=r"no data folder at .*nowhere"):
        bench(kind, recipe=recipe, data="nowhere", epochs=2, set=["data.image_size=224"])
    with pytest.raises(UsageError, match=r"no field named 'optim\.rl'"):
        bench(kind, recipe=recipe, data="nowhere", set="optim.rl=1")
    with pytest.raises(
        UsageError, match=r"epochs=2 and schedule\.epochs=3 are two lengths: give one of them"
    ):
        bench(kind, recipe=recipe, data="nowhere", epochs=2, set={"schedule.epochs": 3})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bench"], "needs its kind first: twins, compare"),
        (["bench", "--seeds", "3"], "needs its kind first"),
        (["bench", "twin"], "no kind of bench named 'twin'. Did you mean 'twins'?"),
        (["bench", "compare", "--ops", "sima"], "at least two different operators"),
        (["bench", "twins", "--ops", "sima"], "softless bench twins has no option '--ops'"),
        (["bench", "operators"], "python -m lab operators"),
        (["bench", "latency"], "name some"),
        (["bench", "latency", "deit_tiny_patch16_224", "--ranks", "2"], "no option '--ranks'"),
    ],
)
def test_misuse_is_one_sentence_and_exit_code_two(words, sentence, capsys):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("softless: ")
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "arguments", "options", "message"),
    [
        ("runs", (), {}, "missing a required argument: 'runs'"),
        ("twins", ("digits", "nuclei"), {}, "too many positional arguments"),
        ("latency", (), {"models": ["a"]}, "no option of bench latency named 'models'"),
    ],
)
def test_arguments_that_do_not_fit_are_a_sentence(kind, arguments, options, message):
    with pytest.raises(UsageError, match=message):
        bench(kind, *arguments, **options)


@pytest.mark.parametrize("kind", [kind for kind in LAB if kind not in KINDS])
def test_what_measures_softless_itself_is_named(kind):
    with pytest.raises(UsageError, match=f"run python -m lab {kind} in a checkout"):
        bench(kind)
