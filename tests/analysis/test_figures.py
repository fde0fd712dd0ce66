"""Every figure has the axes that it promises, and shows the data that it was given."""

import numpy as np
import pytest

from qrobust.analysis import draw


def result(outcome, name, case=0):
    return outcome[0][name]["cases"][case]["result"]


def titles(figure):
    return [panel.get_title() for panel in figure.axes]


def pictures(figure):
    return [np.asarray(image.get_array()) for panel in figure.axes for image in panel.get_images()]


def bars(figure):
    """Labels of colour bars."""
    return [panel.get_ylabel() for panel in figure.axes if panel.get_label() == "<colorbar>"]


def test_low_pass(drawn, outcome):
    clean, attacked = drawn("low-pass").axes
    assert (clean.get_title(), attacked.get_title()) == ("clean images", "under pgd-2")
    assert (clean.get_xlabel(), clean.get_ylabel()) == ("bandwidth k of the filter", "accuracy, %")
    assert [line.get_label() for line in clean.get_lines()] == ["QM-32", "QM-4"]
    x, y = attacked.get_lines()[1].get_data()
    assert list(x) == [3, 6, 12] == sorted(clean.get_xticks())
    expected = result(outcome, "low-pass", 1)["curves"]["pgd-2"]["accuracy"]
    assert list(y) == pytest.approx([100 * share for share in expected])
    assert len(clean.collections) == 2  # a band each


def test_aggressiveness(drawn, outcome):
    first, second = drawn("aggressiveness").axes
    assert (first.get_title(), second.get_title()) == ("QM-32", "QM-4")
    labels = [line.get_label() for line in first.get_lines()]
    assert labels == ["without δ", "LPF of δ", "HPF of δ"]
    expected = result(outcome, "aggressiveness")["curves"]["high"]["accuracy"]
    assert list(first.get_lines()[2].get_ydata()) == pytest.approx([100 * share for share in expected])


def test_filtered(drawn):
    figure = drawn("filtered")
    names = [panel.get_ylabel() for panel in figure.axes if panel.get_ylabel()]
    assert names == ["image", *(f"{band}, k = {k}" for band in ("LPF", "HPF") for k in (3, 6, 12))]
    assert titles(figure)[:3] == ["0", "1", "2"]
    assert {picture.shape for picture in pictures(figure)} == {(12, 12, 3)}
    assert len(pictures(figure)) == 7 * 6


def test_perturbations(drawn, outcome):
    figure = drawn("perturbations")
    head = [title.splitlines() for title in titles(figure)[:5]]
    assert head[0] == ["x"]
    assert [lines[0] for lines in head[1:]] == ["QM-32", "QM-32", "QM-4", "QM-4"]
    right = result(outcome, "perturbations")["right"]
    answers = [titles(figure)[10 * row + 1].split(": ")[-1] for row in range(3)]
    assert answers == ["holds" if one else "fooled" for one in right]
    assert bars(figure) == ["log₁₀ magnitude, images", "log₁₀ magnitude, δ"]
    spectrum = np.array(result(outcome, "perturbations")["spectra"]["perturbation"][0])
    assert np.array_equal(pictures(figure)[7], spectrum)


@pytest.mark.parametrize(
    ("name", "key", "scale", "bar"),
    [
        ("mean-spectrum", "spectrum", np.log10, "log₁₀ mean magnitude of δ"),
        ("heat-map", "error", lambda x: 100 * x, "error rate, %"),
    ],
)
def test_maps_have_the_zero_frequency_at_the_centre(drawn, outcome, name, key, scale, bar):
    figure = drawn(name)
    assert titles(figure)[:2] == ["QM-32", "QM-4"]
    assert bars(figure) == [bar]
    assert list(figure.axes[0].get_xticks()) == list(figure.axes[0].get_yticks()) == [-6, 0, 5]
    image = figure.axes[1].get_images()[0]
    assert image.get_extent() == [-6.5, 5.5, 5.5, -6.5]  # left, right, bottom, top
    assert np.allclose(image.get_array(), scale(np.array(result(outcome, name, 1)[key])))
    assert len({image.get_clim() for panel in figure.axes[:2] for image in panel.get_images()}) == 1


def test_kernels(drawn, outcome):
    figure = drawn("kernels")
    assert titles(figure) == ["", ""]  # at the left
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["QM-32: conv", "QM-4: conv"]
    first = pictures(figure)[0]
    assert first.shape == (3 * 4 - 1, 16 * 4 - 1)
    weight = np.array(result(outcome, "kernels")["weight"])
    assert np.array_equal(first[4:7, 8:11], weight[2, 1])  # channels downwards, kernels to the right
    assert np.ma.masked_invalid(first).mask[3].all()


def test_inner_kernels(drawn, outcome):
    figure = drawn("inner-kernels")
    weight = np.array(result(outcome, "inner-kernels", 1)["weight"])
    second = pictures(figure)[1]
    assert np.array_equal(second[8:11, 4:7], weight[2, 1])  # filters downwards, inputs to the right
    low, high = figure.axes[1].get_images()[0].get_clim()
    assert -low == high == np.abs(weight).max()


def test_kernel_spectra(drawn, outcome):
    figure = drawn("kernel-spectra")
    names = [layer["name"] for layer in result(outcome, "kernel-spectra")["layers"]]
    assert titles(figure)[:4] == [f"{case}: {name}" for name in names for case in ("QM-32", "QM-4")]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["low", "high", "low"]
    assert pictures(figure)[0].shape == (16, 27)


def test_masks(drawn, outcome):
    (panel,) = drawn("masks").axes
    layers = result(outcome, "masks", 1)["layers"]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == [layer["name"] for layer in layers]
    assert panel.get_ylabel() == "mask"
    whole = panel.get_lines()[1]
    assert list(whole.get_ydata()) == [layers[0]["quantiles"][0], layers[0]["quantiles"][-1]]


def test_frequency_ratio(drawn, outcome):
    epochs, images = drawn("frequency-ratio").axes
    assert (epochs.get_xlabel(), epochs.get_ylabel()) == ("epoch", "R, first batch of training images")
    assert [tick.get_text() for tick in images.get_yticklabels()] == ["QM-32", "QM-4"]
    logged = result(outcome, "frequency-ratio")["epochs"]
    assert np.array_equal(epochs.get_lines()[0].get_xydata(), logged)


def test_without_a_log_there_is_one_panel(outcome):
    data = outcome[0]["frequency-ratio"]
    cases = [{**case, "result": {**case["result"], "epochs": []}} for case in data["cases"]]
    (panel,) = draw({**data, "cases": cases}).axes
    assert panel.get_xlabel() == "R after training, by test image"


def test_similarity(drawn, outcome):
    figure = drawn("similarity")
    cka = np.array(result(outcome, "similarity")["cka"])
    count = len(cka)
    mean = cka[~np.eye(count, dtype=bool)].mean()
    assert titles(figure)[0] == f"QM-32: mean {mean:.2f}"
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()][-1] == str(count)
    assert bars(figure) == ["CKA"]
    assert np.array_equal(pictures(figure)[0], cka)


def test_similarity_to_float(drawn, outcome):
    figure = drawn("similarity-to-float")
    same = np.array(result(outcome, "similarity-to-float", 1)["cka"]).diagonal().mean()
    assert titles(figure)[0] == f"QM-4: same layer {same:.2f}"  # the float network alone has none
    assert figure.axes[0].get_xlabel() == "layer of the float network"


def evaluated(label, share, **settings):
    found = {"accuracy": share, "ci95": [share - 0.1, share + 0.1]}
    accuracy = {"clean": found, "pgd-20": found}
    return {"label": label, "result": {"settings": settings, "n": 50, "accuracy": accuracy}}


def ablation_of(*cases):
    (panel,) = draw({"figure": "ablation", "paper": "-", "settings": {}, "cases": list(cases)}).axes
    lines = {name: panel.get_lines()[3 * index] for index, name in enumerate(("clean", "pgd-20"))}
    ticks = [tick.get_text() for tick in panel.get_xticklabels()]
    return panel.get_xlabel(), lines, ticks


def test_a_number_is_an_axis_in_its_order_and_no_weight_is_zero():
    name, lines, _ = ablation_of(
        evaluated("b", 0.6, **{"train.sar.weight": 0.2, "seed": 1}),
        evaluated("a", 0.5, **{"train.sar.weight": 0.05, "train.lr": 0.1}),
        evaluated("c", 0.4, **{"seed": 2, "train.lr": 0.1}),
    )
    assert name == "train.sar.weight"
    assert lines["clean"].get_xydata().ravel() == pytest.approx([0, 40, 0.05, 50, 0.2, 60])
    assert lines["clean"].get_linestyle() == "-"


@pytest.mark.parametrize(
    ("settings", "name", "ticks"),
    [
        (({"train.sar.distance": "l1"}, {"train.sar.distance": "l2"}, {}), "train.sar.distance", ["l1", "l2", "none"]),
        (({"bits": 32}, {"bits": 4}, {"bits": 2}), "bits", ["32", "4", "2"]),
        (({"flip": True}, {"flip": False}, {"flip": True}), "flip", ["True", "False"]),
        (({"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 2}), "network", ["one", "two", "three"]),
        (({}, {}, {}), "network", ["one", "two", "three"]),
    ],
)
def test_all_else_are_points_by_name(settings, name, ticks):
    labels = ("one", "two", "three")
    found, lines, shown = ablation_of(
        *(evaluated(label, 0.5, **one) for label, one in zip(labels, settings, strict=True))
    )
    assert (found, shown) == (name, ticks)
    assert lines["clean"].get_linestyle() == "None"


def test_attacks_that_not_all_have_are_left_out():
    first, second = evaluated("a", 0.5), evaluated("b", 0.5)
    del second["result"]["accuracy"]["pgd-20"]
    (panel,) = draw({"figure": "ablation", "paper": "-", "settings": {}, "cases": [first, second]}).axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["clean"]
