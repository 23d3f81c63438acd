"""The search for the smallest file that is good enough."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest

import vqformat
from vqformat.smallest import Trial


def net() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"a.weight": (96, 64), "a.bias": (96,), "b.weight": (10, 96), "b.bias": (10,)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def likeness(tensors: dict[str, np.ndarray]) -> float:
    """1 less the relative squared error of the large weight: falls as files get smaller."""
    original = net()["a.weight"]
    return 1 - float(np.square(tensors["a.weight"] - original).sum() / np.square(original).sum())


@pytest.mark.parametrize("max_drop", [0.3, 0.03, 0.001])
def test_the_smallest_file_that_is_good_enough(max_drop: float) -> None:
    found = vqformat.search(net(), likeness, max_drop)

    tensors = vqformat.load(found.data)
    assert found.best.drop == pytest.approx(1 - likeness(tensors))
    assert 0.6 * max_drop <= found.best.drop <= max_drop  # the curve is smooth: it comes near
    assert len(found.trials) <= 10
    assert found.best.nbytes == len(found.data) == min(t.nbytes for t in found.trials if t.drop <= max_drop)
    assert found.ratio == pytest.approx(sum(array.nbytes for array in net().values()) / len(found.data))


def test_other_presets_and_options_are_searched_too() -> None:
    found = vqformat.search(net(), likeness, 0.02, preset="default", recipe={"b.weight": "raw"})

    tensors = vqformat.load(found.data)
    assert np.array_equal(tensors["b.weight"], net()["b.weight"])
    assert 0.01 < found.best.drop <= 0.02


def test_a_metric_with_steps_that_may_rise_and_break_down() -> None:
    def evaluate(tensors: dict[str, np.ndarray]) -> float:
        like = likeness(tensors)
        return float("nan") if like < 0.5 else round(like * 20) / 20 + 0.01 * (like < 1)

    found = vqformat.search(net(), evaluate, 0.05)

    assert 0.875 <= likeness(vqformat.load(found.data)) <= 0.99


def test_where_nothing_is_good_enough_every_bit_is_kept() -> None:
    def evaluate(tensors: dict[str, np.ndarray]) -> float:
        return float(all(np.array_equal(tensors[name], array) for name, array in net().items()))

    found = vqformat.search(net(), evaluate, 0.5, max_evaluations=3)

    assert found.best.step == 0
    assert all(np.array_equal(vqformat.load(found.data)[name], array) for name, array in net().items())


def test_options_that_say_how_bits_are_lost_do_not_hinder_that() -> None:
    def evaluate(tensors: dict[str, np.ndarray]) -> float:
        return float(all(np.array_equal(tensors[name], array) for name, array in net().items()))

    found = vqformat.search(net(), evaluate, 0.5, max_evaluations=1, recipe={"a.weight": "kmeans:entries=4"}, seed=3)
    assert found.best.step == 0


@pytest.mark.parametrize("said", [float("nan"), float("inf")])
def test_an_original_without_a_metric(said: float) -> None:
    with pytest.raises(ValueError, match=f"evaluate says {said} of the original"):
        vqformat.search(net(), lambda _: said)


def test_a_measure_that_changes_its_mind() -> None:
    said = iter([1.0, *[0.0] * 50])
    with pytest.raises(ValueError, match="evaluate says different things of the same model"):
        vqformat.search(net(), lambda _: next(said), 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [({"max_drop": 0}, ValueError, "max_drop is 0"), ({"max_drop": float("nan")}, ValueError, "max_drop is nan"),
     ({"max_evaluations": 0}, ValueError, "max_evaluations is 0"),
     ({"ratio": 8}, vqformat.EncodeError, "ratio is what a search finds")],
)  # fmt: skip
def test_arguments_that_make_no_sense(arguments: dict[str, float], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        vqformat.search(net(), likeness, **arguments)


def test_a_model_of_another_kind() -> None:
    with pytest.raises(ValueError, match="model is a list"):
        vqformat.search([1], lambda _: 1.0)


def test_the_curve_as_a_table_and_as_a_picture(tmp_path: Path) -> None:
    seen: list[Trial] = []
    found = vqformat.search(net(), likeness, 0.1, on_trial=seen.append)

    assert sorted(seen, key=lambda trial: trial.ratio) == found.trials
    lines = str(found).splitlines()
    assert len(lines) == len(found.trials) + 2
    marked = [line for line in lines if "<- the smallest" in line]
    assert [line.split()[1] for line in marked] == [f"{found.best.nbytes:,}"]

    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_file_is_saved_and_others_are_kept(tmp_path: Path) -> None:
    found = vqformat.search(net(), likeness, 0.1, max_evaluations=2)
    found.save(tmp_path / "net.vqm")
    assert (tmp_path / "net.vqm").read_bytes() == found.data
    with pytest.raises(FileExistsError):
        found.save(tmp_path / "net.vqm", overwrite=False)


def test_a_module_is_searched_by_a_copy_with_and_without_calibration() -> None:
    torch = pytest.importorskip("torch")
    from vqformat.torch import calibrate, load_model

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.ReLU(), torch.nn.Linear(96, 10))
    inputs = torch.randn(600, 12) @ torch.randn(12, 48)  # that go together
    before = copy.deepcopy(model.state_dict())
    aim = model(inputs[:200]).detach()

    def evaluate(candidate: torch.nn.Module) -> float:
        assert candidate is not model
        with torch.inference_mode():
            return 1 - float((candidate(inputs[:200]) - aim).square().sum() / aim.square().sum())

    found = vqformat.search(model, evaluate, 0.02, max_evaluations=6)
    calibration = calibrate(model, list(inputs[200:].split(50)))
    calibrated = vqformat.search(model, evaluate, 0.02, max_evaluations=6, calibration=calibration)

    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert calibrated.ratio > 1.3 * found.ratio
    load_model(model, io.BytesIO(calibrated.data))
    with torch.inference_mode():
        assert float((model(inputs[:200]) - aim).square().sum() / aim.square().sum()) <= 0.02


def test_tensors_of_torch_come_back_as_such() -> None:
    torch = pytest.importorskip("torch")

    def evaluate(tensors: dict[str, torch.Tensor]) -> float:
        return likeness({name: tensor.numpy() for name, tensor in tensors.items()})

    tensors = {name: torch.from_numpy(array) for name, array in net().items()}
    assert vqformat.search(tensors, evaluate, 0.1, max_evaluations=3).best.drop <= 0.1
