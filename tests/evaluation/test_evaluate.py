"""Running a model over a split, alone and in several processes."""

import json
import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed
from torch import nn

from softless.data import ArraySamples, eval_loader, eval_transform
from softless.errors import UsageError
from softless.evaluation import evaluate, wilson
from softless.tasks.classification.measure import validate

CLASSES = ("dark", "bright")


class Brightness(nn.Module):
    """Knows dark from bright; counts what it is shown, and in which mode it was."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.shown = []

    def forward(self, x):
        self.shown.append((len(x), self.training, x.dtype))
        level = x.mean((1, 2, 3)) * self.scale
        return torch.stack([-level, level], 1)


def squares(n=21, wrong=3):
    targets = np.arange(n) % 2
    # no two alike: the order shows
    pixels = (np.where(targets, 200, 50) + np.arange(n)).astype(np.uint8)
    pixels[:wrong] = 255 - pixels[:wrong]
    return ArraySamples(pixels[:, None, None].repeat(8, 1).repeat(8, 2), targets, 1)


def loader(samples=None, **options):
    transform = eval_transform(8, 1.0, "bilinear", (0.5,), (0.25,), 1)
    return eval_loader(samples or squares(), transform, batch=6, **options)


def test_what_comes_back():
    model = Brightness().train()
    e = evaluate(model, loader(), CLASSES)
    assert [n for n, *_ in model.shown] == [6, 6, 6, 3]
    assert not any(training for _, training, _ in model.shown)
    assert model.training
    assert (e.seen, e.expected) == (21, 21)
    assert e.metrics.top1 == pytest.approx(18 / 21)
    assert e.interval == wilson(18, 21)
    assert e.logits.shape == (21, 2)
    assert e.logits.dtype == np.float32
    assert e.targets.tolist() == squares().targets.tolist()
    assert e.correct.tolist() == [False] * 3 + [True] * 18
    assert e.metrics.confusion.tolist() == [[9, 2], [1, 9]]


def test_as_dict_and_as_table():
    e = evaluate(Brightness(), loader(), CLASSES)
    assert list(e.summary()) == [
        "loss",
        "top1",
        "balanced_accuracy",
        "auc",
        "commonest",
        "chance",
        "threshold",
        "seen",
        "expected",
    ]
    content = json.loads(json.dumps(e.to_dict()))
    assert content["confusion"] == [[9, 2], [1, 9]]
    assert content["interval"] == pytest.approx(e.interval)
    table = str(e)
    assert "21 of 21" in table
    assert f"0.8571  (95 % interval {e.interval[0]:.4f} to" in table
    assert "top-5" not in table


def test_one_class_says_so():
    samples = squares()
    alone = samples.take(np.flatnonzero(samples.targets == 1))
    assert "only one class occurs" in str(evaluate(Brightness(), loader(alone), CLASSES))


def test_results_do_not_depend_on_the_batch():
    transform = eval_transform(8, 1.0, "bilinear", (0.5,), (0.25,), 1)
    parts = [
        evaluate(Brightness(), eval_loader(squares(), transform, batch=b), CLASSES).logits
        for b in (1, 5, 50)
    ]
    assert np.array_equal(parts[0], parts[1])
    assert np.array_equal(parts[0], parts[2])


def test_amp_computes_in_half_and_answers_in_float():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    full = evaluate(model, loader(), CLASSES).logits
    half = evaluate(model, loader(), CLASSES, amp="bfloat16").logits
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.1
    assert np.array_equal(half, torch.tensor(half).bfloat16().float().numpy())


def test_names_must_fit():
    with pytest.raises(UsageError, match=r"pass classes=splits\.classes"):
        evaluate(Brightness(), loader())
    with pytest.raises(UsageError, match="gives 2 logits and there are 3 classes"):
        evaluate(Brightness(), loader(), ("a", "b", "c"))


def _one_of_three(rank, meeting, answers):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=3
    )
    for n in (21, 2):  # with two images the third process has nothing to do
        parts = evaluate(Brightness(), loader(squares(n, 0), rank=rank, world=3), CLASSES)
        whole = evaluate(Brightness(), loader(squares(n, 0)), CLASSES)
        counted = validate(Brightness(), loader(squares(n, 0), rank=rank, world=3), CLASSES)
        assert counted == pytest.approx(whole.summary(), rel=1e-12), (counted, whole.summary())
        answers.put((n, parts.logits.tolist(), parts.to_dict(), whole.logits.tolist()))
    torch.distributed.destroy_process_group()


# Python 3.12 warns of any thread, even idle ones
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_three_processes_give_each_the_whole(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    ranks = [
        context.Process(target=_one_of_three, args=(r, tmp_path / "meeting", answers))
        for r in range(3)
    ]
    for process in ranks:
        process.start()
    received = [answers.get(timeout=300) for _ in range(6)]
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0, 0]
    alone = {n: evaluate(Brightness(), loader(squares(n, 0)), CLASSES) for n in (21, 2)}
    assert sorted(n for n, *_ in received) == [2, 2, 2, 21, 21, 21]
    for n, logits, content, whole in received:
        assert logits == whole == alone[n].logits.tolist()
        assert content == alone[n].to_dict()
        assert content["seen"] == content["expected"] == n
